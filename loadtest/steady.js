// SPDX-License-Identifier: Apache-2.0 OR MIT
// Does Hearth keep up with a steady stream of calls, native and wasm side by side, without one error and without
// falling behind? The two functions are built from one source, so their figures can be compared.
//
// The arrival rate does not wait for answers (an open model): a stall shows as dropped iterations and in the tail.

import { byName, checkAnswer, invoke } from './hearth.js';

const seconds = parseInt(__ENV.STEADY_SECONDS || '20', 10);
const rate = parseInt(__ENV.STEADY_RATE || '50', 10);

function arrivals(exec) {
  return {
    executor: 'constant-arrival-rate',
    exec,
    rate,
    timeUnit: '1s',
    duration: `${seconds}s`,
    // As many callers as could wait at once if every call took a quarter of a second.
    preAllocatedVUs: Math.ceil(rate / 4),
    maxVUs: rate,
  };
}

export const options = {
  scenarios: { native: arrivals('native'), wasm: arrivals('wasm') },
  // Percentiles beside the default ones, so that the summary has the tail.
  summaryTrendStats: ['avg', 'min', 'med', 'p(90)', 'p(95)', 'p(99)', 'max'],
  thresholds: {
    checks: ['rate==1'],
    dropped_iterations: ['count==0'],
    'http_req_failed{scenario:native}': ['rate==0'],
    'http_req_failed{scenario:wasm}': ['rate==0'],
    // Room for a busy machine of two cores that also runs the load; docs/performance.md has the measured figures.
    'http_req_duration{scenario:native}': ['p(95)<100'],
    'http_req_duration{scenario:wasm}': ['p(95)<100'],
    // Thresholds that always hold make k6 report these per tag.
    'phase_queue{kind:native}': ['min>=0'],
    'phase_queue{kind:wasm}': ['min>=0'],
    'phase_acquire{kind:native}': ['min>=0'],
    'phase_acquire{kind:wasm}': ['min>=0'],
    'phase_run{kind:native}': ['min>=0'],
    'phase_run{kind:wasm}': ['min>=0'],
  },
};

export function native() {
  const fn = byName('sha256');
  checkAnswer(fn, invoke(fn));
}

export function wasm() {
  const fn = byName('sha256-wasm');
  checkAnswer(fn, invoke(fn));
}
