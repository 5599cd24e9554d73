/**
 * Backups of an image that the data plane's real workers write in place as fast as they can: no page of the target has what was
 * written after the moment, and every page has what was written before.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { silentLog } from '../../src/base/log.ts';
import { JobList } from '../../src/job/job-list.ts';
import { plainBackup } from '../support/plain-jobs.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import type { Cleanup } from '../support/scratch.ts';
import {
  STRESS_BYTES,
  STRESS_PAGES,
  type StressGuests,
  startStressGuests,
} from '../support/stress-guests.ts';
import { STRESS_PAGE_BYTES, wrongOf } from '../support/stress-pages.ts';

const REQUESTS = 6000;
/** Bytes a second: blocks are left for a while. */
const SLOW = 400_000;

/** Which versions each page can have at the moment. */
interface Moment {
  readonly low: readonly number[];
  readonly high: readonly number[];
}

const momentOf = ({ versions }: StressGuests): Moment => {
  const pages = Array.from({ length: STRESS_PAGES }, (_, page) => page);
  const low = pages.map((page) => versions.written(page));
  return { low, high: pages.map((page) => versions.begun(page)) };
};

/** Pages of the target that are not what they were; and how many were written meanwhile. */
const backUp = async (
  guests: StressGuests,
  { isProtected, speed }: { readonly isProtected: boolean; readonly speed: number },
): Promise<{ readonly findings: readonly string[]; readonly changed: number }> => {
  const { view, root, graph, directory } = guests;
  const path = join(directory, 'target');
  await writeFile(path, new Uint8Array(STRESS_BYTES));
  const node = await graph.open({ path, format: 'raw', readOnly: false });
  const work = plainBackup({ view, root, target: node });
  const { job, moment } = await view.drained(async () => {
    await work.begin();
    if (!isProtected) root.interposers.length = 0;
    const started = new JobList(silentLog).start({
      id: 'job',
      type: 'backup',
      speed,
      autoFinalize: true,
      autoDismiss: false,
      nodes: [root],
      work,
    });
    return { job: started, moment: momentOf(guests) };
  });
  await job.concluded;
  assert.equal(job.error, null);
  await graph.close(node);
  const copied = await readFile(path);
  const after = momentOf(guests);
  const findings = moment.low.flatMap((low, page) => {
    const bytes = copied.subarray(page * STRESS_PAGE_BYTES, (page + 1) * STRESS_PAGE_BYTES);
    // A copy: the words of a file's buffer are not aligned.
    const wrong = wrongOf(new Uint8Array(bytes), page, low, moment.high[page] ?? 0);
    return wrong === null ? [] : [wrong];
  });
  const changed = after.low.filter((low, page) => low > (moment.high[page] ?? 0)).length;
  return { findings, changed };
};

const run = async (
  t: Cleanup,
  format: 'raw' | 'qcow2',
  options: { readonly requests: number; readonly isProtected: boolean },
): Promise<{ findings: string[]; backups: number; changed: number; hits: number }> => {
  const guests = await startStressGuests(t, format, options.requests);
  const findings: string[] = [];
  let backups = 0;
  let changed = 0;
  for (; guests.isRunning(); backups++) {
    const speed = backups % 4 === 0 ? SLOW : 0;
    const one = await backUp(guests, { isProtected: options.isProtected, speed });
    findings.push(...one.findings);
    changed += one.changed;
  }
  findings.push(...(await guests.findings()));
  const { hits } = guests.counts();
  await guests.close();
  return { findings, backups, changed, hits };
};

for (const format of ['raw', 'qcow2'] as const) {
  test(`no page has what workers wrote after the moment (${format}, seed ${SEED})`, {
    timeout: 300_000,
  }, async (t) => {
    const o = await run(t, format, { requests: countOf(REQUESTS), isProtected: true });
    assert.deepEqual(o.findings, []);
    assert.ok(o.backups > 3, `${o.backups} backups`);
    assert.ok(o.changed > 0, 'pages were written while they were to be copied');
    assert.ok(o.hits > 100, `${o.hits} hits`);
    t.diagnostic(`${o.backups} backups, ${o.changed} pages changed meanwhile, ${o.hits} hits`);
  });
}

test('writes that wait for no copy are noticed', { timeout: 300_000 }, async (t) => {
  for (let attempt = 0; attempt < 20; attempt++) {
    const { findings } = await run(t, 'raw', { requests: REQUESTS, isProtected: false });
    if (findings.length > 0) return;
  }
  assert.fail('20 runs without protection, and nothing was noticed');
});
