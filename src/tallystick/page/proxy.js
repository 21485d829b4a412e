// What is asked of the proxy, and how it answers. Knows nothing of the page.

const TOKEN = document.querySelector('meta[name="tally-page"]').content;
const AGAIN = 2000;

let key = null;
let unlock = null;

/** What went wrong, whose move it is, and what mends it. */
export class Problem extends Error {
  constructor({ code, detail, title, move, mend, message }) {
    super(detail ?? title ?? message);
    this.code = code;
    this.move = move;
    this.mend = mend;
  }
}

/** `ask` is called for the key where the proxy wants one; it resolves once `useKey` was called. */
export function onLocked(ask) {
  unlock = ask;
}

export function useKey(value) {
  key = value;
}

function headers(given) {
  return { "tally-page": TOKEN, ...(key ? { authorization: `Bearer ${key}` } : {}), ...given };
}

async function request(path, { headers: given = {}, ...how } = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...how, headers: headers(given) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ code: "proxy_gone", detail: "The proxy does not answer.", move: "payer",
      mend: "Start it again where it ran: tally proxy" });
  }
  if (answer.ok) return answer;
  const problem = await problemOf(answer);
  if (problem.code !== "key_refused") throw problem;
  await unlock(key !== null);
  return request(path, { headers: given, ...how });
}

async function problemOf(answer) {
  const body = await answer.json().catch(() => null);
  return new Problem(body?.error ?? { code: "error", detail: `The proxy answers ${answer.status}.` });
}

/** What the proxy tells. */
export async function ask(path) {
  return (await request(path)).json();
}

/** A file, byte for byte: it is sealed. */
export async function download(path) {
  return (await request(path)).blob();
}

/** What came of an action. */
export async function act(path, body = {}) {
  return (await send(path, body)).json();
}

function send(path, body, signal) {
  const given = { "content-type": "application/json" };
  return request(path, { method: "POST", headers: given, body: JSON.stringify(body), signal });
}

/** A reply: what it can cost at most, its job, and the iterator of its chunks. */
export async function chat(body, signal) {
  const answer = await send("/v1/chat/completions", { ...body, stream: true }, signal);
  return {
    job: Number(answer.headers.get("tally-job")),
    atMost: answer.headers.get("tally-cost-at-most"),
    chunks: chunks(answer),
  };
}

async function* chunks(answer) {
  for await (const data of events(answer)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Problem(chunk.error);
    yield chunk;
    if (chunk.tally?.error) throw new Problem(chunk.tally.error);
  }
}

/** The data of each server-sent event. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const all = (rest + value).split("\n\n");
    rest = all.pop();
    for (const event of all) if (event.startsWith("data: ")) yield event.slice(6);
  }
}

/** Hands each happening to `hear`, for as long as the page is open; `heard(problem)` says how it stands. */
export async function listen(hear, heard) {
  for (;;) {
    try {
      const answer = await request("/page/events");
      heard(null);
      for await (const data of events(answer)) hear(JSON.parse(data));
    } catch (problem) {
      heard(problem);
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
  }
}
