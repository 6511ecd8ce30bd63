// The page: choose an LPNet, move its widths, see the milliseconds.

import { ask, hasToken, latestOnly, useToken } from "./api.js";
import { drawAccuracy, drawBars, drawStairs, ms } from "./charts.js";

const at = (id) => document.getElementById(id);
let manifest = null;
let lpnetId = null;
let widths = [];

const guarded = (call) => async (...values) => {
  try {
    at("message").textContent = "";
    await call(...values);
  } catch (error) {
    at("message").textContent = error.message;
    if (error.status === 401) {
      at("token-form").hidden = false;
      if (!hasToken()) at("token").focus();
    }
  }
};

const start = guarded(async () => {
  const [devices, spaces, lpnets] = await Promise.all(["devices", "spaces", "lpnets"].map((what) => ask(`/v1/${what}`)));
  at("token-form").hidden = true;
  at("devices").replaceChildren(...devices.map((device) => item("li", device.description)));
  if (!lpnets.length) {
    at("message").textContent = "There is no LPNet yet; upload one, or have one trained from a profile.";
    return;
  }
  const nameOf = new Map(spaces.map((space) => [space.structure_hash, space.name || space.structure_hash.slice(0, 12)]));
  const deviceOf = new Map(devices.map((device) => [device.digest, device.description]));
  at("lpnet").replaceChildren(
    ...lpnets.map((known) => {
      const text = `${nameOf.get(known.structure_hash)} on ${deviceOf.get(known.device_digest)} (${known.id})`;
      return new Option(text, known.id);
    }),
  );
  at("main").hidden = false;
  await choose();
});

const choose = guarded(async () => {
  lpnetId = at("lpnet").value;
  manifest = (await ask(`/v1/lpnets/${lpnetId}`)).manifest;
  widths = manifest.grid.map((allowed) => allowed.at(-1));
  showFacts();
  showSliders();
  at("group").replaceChildren(...manifest.group_names.map((name, index) => new Option(name, index)));
  await Promise.all([follow(), showProfile()]);
});

function showFacts() {
  const own = manifest.metrics[manifest.kind];
  const percent = (share) => (share === null || share === undefined ? "not known" : `${(100 * share).toFixed(2)} %`);
  const facts = {
    "unpruned": ms(manifest.reference_ms),
    "error, held out": percent(own?.mape),
    "noise floor": percent(manifest.noise_floor_mape),
    "trained on": `${manifest.n_train} networks`,
    "processor": manifest.fingerprint.cpu_model,
    "runtime": `ONNX Runtime ${manifest.fingerprint.ort_version}, ${manifest.fingerprint.settings.threads} thread(s)`,
  };
  at("facts").replaceChildren(...Object.entries(facts).flatMap(([name, text]) => [item("dt", name), item("dd", text)]));
}

function showSliders() {
  at("sliders").replaceChildren(
    ...manifest.group_names.map((name, group) => {
      const allowed = manifest.grid[group];
      const slider = document.createElement("input");
      Object.assign(slider, { type: "range", id: `width-${group}`, min: 0, max: allowed.length - 1, step: 1 });
      slider.value = allowed.indexOf(widths[group]);
      const label = item("label", name);
      label.htmlFor = slider.id;
      const shown = item("output", "");
      const tell = () => {
        shown.textContent = `${widths[group]} of ${allowed.at(-1)}`;
        slider.setAttribute("aria-valuetext", `${widths[group]} channels`);
      };
      slider.addEventListener("input", () => {
        widths[group] = allowed[slider.value];
        tell();
        follow();
      });
      tell();
      const row = item("div", "");
      row.className = "slider";
      row.append(label, slider, shown);
      return row;
    }),
  );
}

const follow = latestOnly(guarded(async () => {
  const path = `/v1/lpnets/${lpnetId}`;
  const group = Number(at("group").value);
  const stairs = manifest.grid[group].map((width) => widths.with(group, width));
  const [now, layers, steps] = await Promise.all([
    ask(`${path}/predict`, { widths }),
    ask(`${path}/layers`, { widths }),
    ask(`${path}/predict`, { widths: stairs }),
  ]);
  at("latency").textContent = ms(now.latency_ms[0]);
  at("interval").textContent =
    `95 %: ${ms(now.low_ms[0])} to ${ms(now.high_ms[0])}; ` +
    `${((100 * now.latency_ms[0]) / manifest.reference_ms).toFixed(1)} % of the unpruned network's` +
    (now.out_of_range[0] ? "; unlike the networks that were measured" : "");
  at("interval").classList.toggle("outside", now.out_of_range[0]);
  drawBars(at("layers"), layers.layer_names.map((name, index) => ({ name, value: layers.layer_ms[0][index] })), ms);
  drawStairs(at("stairs"), manifest.grid[group], steps.latency_ms, widths[group]);
}));

async function showProfile() {
  const of = `structure_hash=${manifest.structure_hash}`;
  const known = await ask(`/v1/profiles?${of}&device_digest=${manifest.fingerprint_digest}`);
  if (!known.length) {
    at("accuracy-text").textContent = "The profile that this LPNet was trained on has not been uploaded.";
    at("coverage-text").textContent = "";
    at("coverage").replaceChildren();
    at("accuracy").chart?.destroy();
    return;
  }
  const profile = known.at(-1);
  const heldOut = profile.n_held_out > 0;
  const [judged, trained] = await Promise.all([
    ask(`/v1/profiles/${profile.id}/measured?held_out=${heldOut}`),
    ask(`/v1/profiles/${profile.id}/measured`),
  ]);
  const predicted = await predictAll(judged.widths);
  const errors = predicted.map((value, index) => Math.abs(value / judged.latency_ms[index] - 1));
  const mean = errors.reduce((sum, error) => sum + error, 0) / errors.length;
  at("accuracy-text").textContent =
    `${errors.length} ${heldOut ? "held-out" : "training"} networks, mean error ${(100 * mean).toFixed(2)} %.`;
  drawAccuracy(at("accuracy"), judged.latency_ms, predicted);
  showCoverage(profile, trained.widths);
}

async function predictAll(rows) {
  const latencyMs = [];
  for (let first = 0; first < rows.length; first += 1000) {
    const answer = await ask(`/v1/lpnets/${lpnetId}/predict`, { widths: rows.slice(first, first + 1000) });
    latencyMs.push(...answer.latency_ms);
  }
  return latencyMs;
}

function showCoverage(profile, rows) {
  at("coverage-text").textContent =
    `${profile.n_train} training and ${profile.n_held_out} held-out measurements, ${profile.n_failed} failed. ` +
    "Share of each group's allowed widths that was measured:";
  const shares = manifest.group_names.map((name, group) => {
    const seen = new Set(rows.map((row) => row[group]));
    const allowed = manifest.grid[group];
    return { name, value: allowed.filter((width) => seen.has(width)).length / allowed.length };
  });
  drawBars(at("coverage"), shares, (share) => `${(100 * share).toFixed(0)} %`);
}

function item(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function setAll(chosen) {
  widths = manifest.grid.map(chosen);
  showSliders();
  follow();
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(at("token").value);
  start();
});
at("lpnet").addEventListener("change", choose);
at("group").addEventListener("change", follow);
at("full").addEventListener("click", () => setAll((allowed) => allowed.at(-1)));
at("half").addEventListener("click", () => setAll((allowed) => allowed[Math.floor((allowed.length - 1) / 2)]));
at("least").addEventListener("click", () => setAll((allowed) => allowed.find((width) => width > 0)));
start();
