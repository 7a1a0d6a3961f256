// SPDX-License-Identifier: Apache-2.0 OR MIT
// Does every bundled function answer its real input with the expected bytes, and again when its sandbox is warm, and
// does a failing call say why?

import http from 'k6/http';
import { check, sleep } from 'k6';
import { checkAnswer, byName, functions, invoke, problem, url } from './hearth.js';

export const options = {
  // One caller on one connection: the second call of a pair must find the sandbox of the first.
  scenarios: { smoke: { executor: 'per-vu-iterations', vus: 1, iterations: 3, maxDuration: '2m' } },
  thresholds: { checks: ['rate==1'] },
};

export default function () {
  for (const fn of functions) {
    checkAnswer(fn, invoke(fn));
    // The answer goes out before the sandbox is emptied: a call that comes at once would be given another one.
    sleep(0.1);
    const second = invoke(fn);
    checkAnswer(fn, second);
    check(second.answer, {
      [`${fn.name}: the second call is warm`]: (answer) => answer.headers['Hearth-Start'] === 'warm',
    });
  }
  aFailureIsAnAnswer();
  anUnknownNameIsRefused();
}

function aFailureIsAnAnswer() {
  const { answer, outcome } = invoke(byName('thumbnail'), 'this is not a picture');
  check(answer, {
    'a failing function: its outcome': () => outcome === 'function_failed',
    'a failing function: status 502': () => answer.status === 502,
    'a failing function: a problem document': () => (answer.headers['Content-Type'] || '').startsWith('application/problem+json'),
    'a failing function: a receipt to look up': () => (answer.headers['Hearth-Invocation'] || '') !== '',
  });
}

function anUnknownNameIsRefused() {
  const answer = http.post(`${url}/invoke/no-such-function`, 'x', { responseType: 'binary', tags: { name: 'unknown' } });
  check(answer, {
    'an unknown name: status 404': () => answer.status === 404,
    'an unknown name: its code': () => problem(answer).code === 'unknown_function',
  });
}
