// Calls methods of OpenAI's own JavaScript client, and tells what became of each: `served`, `local` if the host was
// not asked, or the code of the refusal. From standard input: {"url", "methods": {method: bearer}}; without methods
// it tells the names of all that the client has.
import { readFileSync } from 'node:fs';
import OpenAI from 'openai';

const MESSAGES = [{ role: 'user', content: 'Why was the stick split?' }];
const CHAT = { model: 'scripted', messages: MESSAGES };
const SPLIT = { name: 'split', parameters: { type: 'object' }, parse: JSON.parse, function: () => '2' };
const STALE = { 'webhook-id': 'x', 'webhook-timestamp': '1', 'webhook-signature': 'x' };
const GIVEN = {
  'chat.completions.create': [CHAT],
  'chat.completions.parse': [{ ...CHAT, response_format: { type: 'json_object' } }],
  'chat.completions.stream': [{ ...CHAT, max_tokens: 300 }],
  'chat.completions.runTools': [{ ...CHAT, tools: [{ type: 'function', function: SPLIT }] }],
  'completions.create': [{ model: 'scripted', prompt: 'Two halves of' }],
  'models.retrieve': ['scripted'],
  'beta.threads.runs.submitToolOutputsStream': ['x', { thread_id: 'x', tool_outputs: [] }],
  'vectorStores.fileBatches.uploadAndPoll': ['x', { files: [new File(['2'], 'halves.txt')] }],
  'webhooks.unwrap': ['x', STALE, 'whsec_MDA='],
  'webhooks.verifySignature': ['x', STALE, 'whsec_MDA='],
};

// Whatever a path is made of is there, and nothing else.
const anything = new Proxy({}, { get: (_, name) => (/_(id|checkpoint)$/.test(String(name)) ? 'x' : undefined) });
const file = new File(['2'], 'halves.txt');

let statuses = [];
const counting = async (url, how) => {
  const response = await fetch(url, how);
  // The client also fetches a data: URL, to see what it can send.
  if (String(url).startsWith(asked.url)) statuses.push(response.status);
  return response;
};

function* methods(resource, path = '') {
  for (const [name, member] of Object.entries(resource)) {
    if (member?._client && !name.startsWith('_')) yield* methods(member, `${path}${name}.`);
  }
  for (let type = resource; path && type?.constructor !== Object; type = Object.getPrototypeOf(type)) {
    for (const name of Object.getOwnPropertyNames(type)) {
      if (!/^(_|constructor$)/.test(name) && typeof resource[name] === 'function') yield [path + name, resource];
    }
  }
}

function argumentsOf(method) {
  const [, names] = /^(?:async )?\w+\(([^)]*)\)/.exec(method.toString());
  return names
    .split(',')
    .map((name) => name.split('=')[0].trim())
    .filter((name) => name && !/options$/i.test(name))
    .map((name) => (/^(body|query|params)$/.test(name) ? anything : /^_?\{?\s*files?$/.test(name) ? file : 'x'));
}

async function outcome(client, name) {
  const resource = new Map(methods(client)).get(name);
  const method = resource[name.split('.').at(-1)];
  statuses = [];
  try {
    const told = await finished(method.apply(resource, GIVEN[name] ?? argumentsOf(method)));
    return statuses.length === 1 ? told : statuses.length === 0 ? 'local' : `statuses ${statuses}`;
  } catch (error) {
    if (error instanceof OpenAI.InvalidWebhookSignatureError) return 'local';
    if (statuses.length !== 1) throw new Error(`${name} failed: statuses ${statuses}`, { cause: error });
    return error.code ?? String(statuses[0]); // one method hides what it was told
  }
}

async function finished(result) {
  if (typeof result?.done === 'function') {
    let last;
    result.on('chunk', (chunk) => (last = chunk));
    await result.done();
    const reason = last?.tally.reason ?? 'stop'; // a runner of tools does not stream
    return ['stop', 'length'].includes(reason) ? 'served' : reason;
  }
  const whole = await result;
  if (whole?.[Symbol.asyncIterator]) {
    for await (const item of whole) if (item.id !== 'scripted') return 'other';
  }
  return 'served';
}

const asked = JSON.parse(readFileSync(0, 'utf8'));
const clientFor = (apiKey) => new OpenAI({ apiKey, adminAPIKey: apiKey, baseURL: `${asked.url}/v1`, fetch: counting });
if (asked.methods === undefined) {
  console.log(JSON.stringify([...methods(clientFor('x'))].map(([name]) => name).sort()));
} else {
  const told = {};
  for (const [name, bearer] of Object.entries(asked.methods)) told[name] = await outcome(clientFor(bearer), name);
  console.log(JSON.stringify(told));
}
