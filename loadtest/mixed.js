// SPDX-License-Identifier: Apache-2.0 OR MIT
// Do ten thousand calls of every kind over 64 connections all end as they should? `run.py mixed` then looks at what is left
// in the processes, cgroups and mounts.

import { checkAnswer, functions, invoke } from './hearth.js';

export const options = {
  scenarios: {
    mixed: {
      executor: 'shared-iterations',
      vus: 64,
      iterations: parseInt(__ENV.MIXED_CALLS || '10000', 10),
      maxDuration: '15m',
    },
  },
  thresholds: { checks: ['rate==1'] },
};

export default function () {
  const fn = functions[(__VU + __ITER) % functions.length];
  checkAnswer(fn, invoke(fn));
}
