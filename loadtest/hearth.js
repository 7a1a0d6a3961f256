// SPDX-License-Identifier: Apache-2.0 OR MIT
// What every scenario shares: the bundled functions with their real inputs, one way to call them, and one counter per
// function and outcome, so that `run.py` can hold k6's counts against Hearth's own.

import http from 'k6/http';
import crypto from 'k6/crypto';
import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';

export const url = __ENV.HEARTH_URL || 'http://127.0.0.1:8080';

// Every bundled function. `run.py` refuses to run when a folder in functions/ is missing here.
export const functions = [
  { name: 'thumbnail', kind: 'native', input: 'input.jpg', expected: 'expected.jpg', type: 'image/jpeg' },
  { name: 'sha256', kind: 'native', input: 'input.jpg', expected: 'expected.txt', type: 'text/plain; charset=utf-8' },
  { name: 'sha256-wasm', kind: 'wasm', input: 'input.jpg', expected: 'expected.txt', type: 'text/plain; charset=utf-8' },
  { name: 'markdown', kind: 'wasm', input: 'input.md', expected: 'expected.html', type: 'text/html; charset=utf-8' },
  { name: 'wordfreq', kind: 'native', input: 'input.txt', expected: 'expected.txt', type: 'text/plain; charset=utf-8' },
  { name: 'crc', kind: 'wasm', input: 'input.txt', expected: 'expected.txt', type: 'text/plain; charset=utf-8' },
  { name: 'hello-cgi', kind: 'native', input: 'input.txt', expected: 'expected.txt', type: 'text/plain; charset=utf-8', path: '/fn/hello-cgi/world?lang=en' },
].map(load);

// The outcomes of an invocation: the label values of hearth_invocations_total, and the codes of the errors.
const OUTCOMES = [
  'ok', 'function_failed', 'function_killed', 'function_timed_out', 'response_too_large',
  'sandbox_lost', 'cannot_start', 'throttled', 'overloaded', 'cancelled',
];

// k6 makes metrics only while it loads a script, so each pair has its counter from the start. `lost` counts answers
// that name no outcome: there must be none.
const counters = {};
for (const { name } of functions) {
  for (const outcome of OUTCOMES.concat('lost')) {
    counters[`${name} ${outcome}`] = new Counter(`invocations__${name.replace(/-/g, '_')}__${outcome}`);
  }
}

// Where Hearth says the time went, in milliseconds.
const phases = {
  queue: new Trend('phase_queue', true),
  acquire: new Trend('phase_acquire', true),
  run: new Trend('phase_run', true),
};

function load(fn) {
  const folder = `../functions/${fn.name}/testdata`;
  const expected = open(`${folder}/${fn.expected}`, 'b');
  return Object.assign({}, fn, {
    body: open(`${folder}/${fn.input}`, 'b'),
    expectedBytes: expected.byteLength,
    expectedSha256: crypto.sha256(expected, 'hex'),
  });
}

export function byName(name) {
  const fn = functions.find((candidate) => candidate.name === name);
  if (!fn) throw new Error(`no bundled function is called ${name}`);
  return fn;
}

// One invocation, counted by its outcome. `body` replaces the function's real input.
export function invoke(fn, body) {
  const path = fn.path || `/invoke/${fn.name}`;
  const answer = http.post(`${url}${path}`, body === undefined ? fn.body : body, {
    responseType: 'binary',
    headers: { 'Content-Type': 'text/plain' }, // hello-cgi repeats it; the others do not look
    tags: { function: fn.name, kind: fn.kind, name: path },
  });
  const outcome = outcomeOf(answer);
  counters[`${fn.name} ${outcome}`].add(1);
  for (const [phase, milliseconds] of Object.entries(timing(answer))) {
    if (phases[phase]) phases[phase].add(milliseconds, { function: fn.name, kind: fn.kind });
  }
  return { answer, outcome };
}

// Checks that an invocation gave the very bytes that are expected, and the headers that every answer carries.
export function checkAnswer(fn, { answer, outcome }) {
  const phasesGiven = timing(answer);
  return check(answer, {
    [`${fn.name}: ok`]: () => outcome === 'ok',
    [`${fn.name}: the expected bytes`]: () => answer.status === 200
      && answer.body !== null
      && answer.body.byteLength === fn.expectedBytes
      && crypto.sha256(answer.body, 'hex') === fn.expectedSha256,
    [`${fn.name}: its content type`]: () => answer.headers['Content-Type'] === fn.type,
    [`${fn.name}: Hearth-Invocation`]: () => (answer.headers['Hearth-Invocation'] || '') !== '',
    [`${fn.name}: Hearth-Start`]: () => ['warm', 'bound', 'created'].includes(answer.headers['Hearth-Start']),
    [`${fn.name}: Server-Timing`]: () => ['queue', 'acquire', 'run'].every((phase) => phase in phasesGiven),
  });
}

// The code of an error answer: a problem details document.
export function problem(answer) {
  try {
    return JSON.parse(text(answer));
  } catch (_) {
    return {};
  }
}

function outcomeOf(answer) {
  if (answer.status === 200 && answer.headers['Hearth-Invocation']) return 'ok';
  const { code } = problem(answer);
  return OUTCOMES.includes(code) ? code : 'lost';
}

function text(answer) {
  if (answer.body === null) return '';
  return String.fromCharCode.apply(null, new Uint8Array(answer.body).slice(0, 65536));
}

// `queue;dur=0.01, acquire;dur=1.2` as { queue: 0.01, acquire: 1.2 }.
function timing(answer) {
  const found = {};
  for (const entry of (answer.headers['Server-Timing'] || '').split(',')) {
    const match = entry.match(/^\s*([a-z_]+)\s*;\s*dur=([0-9.]+)\s*$/);
    if (match) found[match[1]] = parseFloat(match[2]);
  }
  return found;
}
