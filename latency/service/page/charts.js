// Charts and bars.

const HEIGHT_PX = 240;

export const ms = (value) => `${value.toPrecision(4)} ms`;

function draw(place, options, data) {
  const ink = getComputedStyle(document.body).color;
  const axis = (label) => ({ label, stroke: ink, grid: { stroke: "#8884" }, ticks: { stroke: "#8884" } });
  place.chart?.destroy();
  place.chart = new uPlot(
    {
      width: place.clientWidth,
      height: HEIGHT_PX,
      legend: { show: false },
      axes: [axis(options.x), axis(options.y)],
      scales: { x: { time: false } },
      series: options.series,
    },
    data,
    place,
  );
  watch(place);
}

function watch(place) {
  if (place.watched) return;
  place.watched = true;
  new ResizeObserver(() => place.chart.setSize({ width: place.clientWidth, height: HEIGHT_PX })).observe(place);
}

// Measured [n] against predicted [n], with the line on which they agree.
export function drawAccuracy(place, measured, predicted) {
  const order = measured.map((_, index) => index).sort((a, b) => measured[a] - measured[b]);
  const x = order.map((index) => measured[index]);
  const y = order.map((index) => predicted[index]);
  const series = [
    {},
    { stroke: "#8888", width: 1, points: { show: false } },
    { stroke: "#2f6fde", paths: () => null, points: { show: true, size: 5 } },
  ];
  draw(place, { x: "measured, ms", y: "predicted, ms", series }, [x, x, y]);
}

export function drawStairs(place, widths, latencyMs, now) {
  const marked = widths.map((width, index) => (width === now ? latencyMs[index] : null));
  const series = [
    {},
    { stroke: "#2f6fde", width: 2, paths: uPlot.paths.stepped({ align: -1 }), points: { show: true, size: 4 } },
    { stroke: "#b3541e", paths: () => null, points: { show: true, size: 10 } },
  ];
  draw(place, { x: "channels kept", y: "predicted, ms", series }, [widths, latencyMs, marked]);
}

// Bars by name; rows that are there already are kept, so that they follow without flicker.
export function drawBars(place, rows, text) {
  const largest = Math.max(...rows.map((row) => row.value), 1e-12);
  while (place.children.length > rows.length) place.lastChild.remove();
  rows.forEach((row, index) => {
    const bar = place.children[index] ?? place.appendChild(newBar());
    bar.children[0].textContent = row.name;
    bar.children[1].firstChild.style.width = `${(100 * row.value) / largest}%`;
    bar.children[2].textContent = text(row.value);
  });
}

function newBar() {
  const bar = document.createElement("div");
  bar.className = "bar";
  const rail = document.createElement("div");
  rail.append(document.createElement("i"));
  bar.append(document.createElement("span"), rail, document.createElement("span"));
  return bar;
}
