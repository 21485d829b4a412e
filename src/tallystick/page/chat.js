// The conversation: what was asked, what comes, what it costs and how far it is signed for.

import { cost, plain, shown } from "./amounts.js";
import { chat } from "./proxy.js";
import { announce, fillProblem, put, stamp } from "./show.js";

const view = {
  conversation: document.querySelector("#conversation"),
  beginning: document.querySelector("#beginning"),
  exchanges: document.querySelector("#exchanges"),
  form: document.querySelector("#ask"),
  message: document.querySelector("#message"),
  model: document.querySelector("#model"),
  most: document.querySelector("#most"),
  price: document.querySelector("#price"),
  send: document.querySelector("#send"),
  stop: document.querySelector("#stop"),
};

const messages = [];
let overview = null;
let current = null;

/** One question and its reply. */
class Exchange {
  constructor(asked, most, prices) {
    this.most = most;
    this.prices = prices;
    this.tally = { tokens: 0, prompt_tokens: 0 };
    this.before = null;
    this.ofJob = { signed: 0, settled: 0 };
    this.mine = { signed: 0, settled: 0 };
    this.text = "";
    this.leaving = new AbortController();
    this.node = stamp("exchange");
    put(this.node, ".asked .words", asked);
    view.exchanges.append(this.node);
  }

  /** Takes one chunk of the reply. */
  take(chunk) {
    const delta = chunk.choices?.[0]?.delta ?? {};
    if (delta.reasoning_content) this.reason(delta.reasoning_content);
    if (delta.content) this.say(delta.content);
    if (chunk.tally) this.count(chunk.tally);
  }

  say(text) {
    this.text += text;
    this.node.querySelector(".answer .words").append(text);
  }

  reason(text) {
    const reasoning = this.node.querySelector(".reasoning");
    reasoning.hidden = false;
    reasoning.querySelector(".words").append(text);
  }

  count(tally) {
    this.tally = tally;
    if (this.before === null && tally.job) this.before = tally.job.tokens - tally.tokens;
    this.draw(tally.cost);
    this.catchUp("signed");
    this.catchUp("settled");
  }

  draw(told) {
    const { decimals } = overview.asset;
    const amount = told ?? (this.prices && cost(this.tally, this.prices, decimals));
    put(this.node, ".tokens", this.tally.tokens);
    if (amount) put(this.node, ".cost", shown(amount, overview.asset));
    this.width(".received", this.tally.tokens);
  }

  /** Tokens of the job were signed for, or settled; that can be heard before the tokens come. */
  reached(tokens, what) {
    this.ofJob[what] = tokens;
    this.catchUp(what);
  }

  /** How many of the job's tokens are this reply's. */
  catchUp(what) {
    const tokens = this.ofJob[what];
    const mine = Math.min(Math.max(tokens - (this.before ?? tokens), 0), this.tally.tokens);
    if (mine <= this.mine[what] || (mine < tokens - this.before && current === this)) return;
    this.mine[what] = mine;
    put(this.node, `.${what}-tokens`, mine);
    if (what === "signed") this.notch(mine);
  }

  notch(tokens) {
    this.width(".signed", tokens);
    const notch = document.createElement("i");
    notch.className = "notch";
    notch.style.left = this.share(tokens);
    this.node.querySelector(".stick").append(notch);
  }

  width(part, tokens) {
    this.node.querySelector(`.stick ${part}`).style.width = this.share(tokens);
  }

  share(tokens) {
    return `${Math.min((100 * tokens) / this.most, 100)}%`;
  }

  fail(problem) {
    this.node.classList.toggle("empty", this.tally.tokens === 0);
    fillProblem(this.node.querySelector(".problem"), problem);
  }
}

/** Takes over how things stand. */
export function standing(now) {
  overview = now;
  const models = now.models.map((model) => model.name);
  const known = [...view.model.options].map((option) => option.value);
  if (models.length && String(models) !== String(known)) {
    view.model.replaceChildren(...models.map((name) => new Option(name, name)));
  }
  view.model.disabled = models.length === 0;
  view.send.disabled = current !== null || models.length === 0;
  put(document, "#promise", promise(now));
  price();
}

function promise(now) {
  return `At most ${plain(now.cap_deposit, now.asset)} in escrow, at most ${plain(now.cap_day, now.asset)} a day.`;
}

function price() {
  const model = overview?.models.find((each) => each.name === view.model.value);
  if (!model) return;
  const { asset } = overview;
  put(document, "#price", `A million tokens: ${plain(model.price, asset)}, of the prompt ${plain(model.prompt_price, asset)}`);
}

/** Something happened to a job. */
export function happened(event) {
  if (event.kind !== "signed" && event.kind !== "settled") return;
  for (const exchange of exchanges.filter((each) => each.job === event.job_id)) {
    exchange.reached(event.tokens, event.kind);
  }
}

const exchanges = [];

async function ask(asked) {
  const model = view.model.value;
  const most = Number(view.most.value);
  const prices = overview.models.find((each) => each.name === model);
  const exchange = new Exchange(asked, most, prices);
  exchanges.push(exchange);
  view.beginning.hidden = true;
  messages.push({ role: "user", content: asked });
  begin(exchange);
  try {
    await answer(exchange, { model, messages, max_tokens: most });
  } catch (problem) {
    if (problem.name !== "AbortError") failed(exchange, problem);
  }
  if (exchange.text) messages.push({ role: "assistant", content: exchange.text });
  else messages.pop();
  end(exchange);
}

async function answer(exchange, body) {
  const reply = await chat(body, exchange.leaving.signal);
  exchange.job = reply.job;
  exchange.prices = overview.jobs.find((job) => job.job_id === reply.job) ?? exchange.prices;
  announce(`The answer begins. It costs ${reply.atMost} at most.`);
  for await (const chunk of reply.chunks) {
    exchange.take(chunk);
    follow();
  }
}

function failed(exchange, problem) {
  exchange.fail(problem);
  follow();
  announce(`${exchange.tally.tokens ? "The answer broke off." : "No answer."} ${problem.message}`);
}

function begin(exchange) {
  current = exchange;
  view.message.value = "";
  view.send.disabled = true;
  view.stop.disabled = false;
  bottom();
}

function end(exchange) {
  current = null;
  view.send.disabled = false;
  if (document.activeElement === view.stop) view.message.focus();
  view.stop.disabled = true;
  exchange.catchUp("signed");
  exchange.catchUp("settled");
  const paid = exchange.node.querySelector(".cost").textContent;
  if (exchange.tally.tokens) announce(`The answer has ended: ${exchange.tally.tokens} tokens, ${paid}.`);
}

/** The element that scrolls: the conversation on a wide screen, the page on a narrow one. */
function scroller() {
  const inside = getComputedStyle(view.conversation).overflowY === "auto";
  return inside ? view.conversation : document.scrollingElement;
}

function bottom() {
  const each = scroller();
  each.scrollTop = each.scrollHeight;
}

/** Stays at the end, unless the reader has scrolled away from it. */
function follow() {
  const each = scroller();
  if (each.scrollHeight - each.scrollTop - each.clientHeight < 160) bottom();
}

function submitted(event) {
  event.preventDefault();
  const asked = view.message.value.trim();
  if (current || !asked || view.model.disabled || !view.form.reportValidity()) return;
  ask(asked);
}

function pressed(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  view.form.requestSubmit();
}

view.form.addEventListener("submit", submitted);
view.message.addEventListener("keydown", pressed);
view.model.addEventListener("change", price);
view.stop.addEventListener("click", () => current?.leaving.abort());
