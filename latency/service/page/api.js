// Requests to the service; the token stays in this tab.

export class Refusal extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function useToken(token) {
  sessionStorage.setItem("trimms-token", token);
}

export function hasToken() {
  return sessionStorage.getItem("trimms-token") !== null;
}

export async function ask(path, body) {
  const token = sessionStorage.getItem("trimms-token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const order = body === undefined
    ? { headers }
    : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, order);
  const content = await answer.json();
  if (!answer.ok) throw new Refusal(answer.status, content.detail);
  return content;
}

// Runs one call at a time; of those that come meanwhile only the last is made.
export function latestOnly(call) {
  let running = false;
  let waiting = null;
  return async function run(...values) {
    if (running) {
      waiting = values;
      return;
    }
    running = true;
    try {
      await call(...values);
    } finally {
      running = false;
      if (waiting) {
        const next = waiting;
        waiting = null;
        run(...next);
      }
    }
  };
}
