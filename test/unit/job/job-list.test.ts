/** What the end of a mount makes of its jobs. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { silentLog } from '../../../src/base/log.ts';
import { JobList } from '../../../src/job/job-list.ts';
import type { JobWork } from '../../../src/job/job-work.ts';

/** Goes on for ever, and takes its time to end. */
const slowToEnd = (end: Promise<void>): JobWork => ({
  run: async (control) => {
    try {
      for (;;) {
        await control.pausePoint();
        await sleep(1);
      }
    } finally {
      await end;
    }
  },
});

test('a mount that ends keeps what its jobs need to go on, but not what a user has cancelled', async () => {
  const jobs = new JobList(silentLog);
  const forgotten: string[] = [];
  let open = (): void => undefined;
  const end = new Promise<void>((resolve) => {
    open = resolve;
  });
  const begin = (id: string) =>
    jobs.start({
      id,
      type: 'stream',
      speed: 0,
      autoFinalize: true,
      autoDismiss: true,
      nodes: [],
      work: slowToEnd(end),
      dismissed: (job) => forgotten.push(job.id),
    });
  begin('works');
  const cancelled = begin('cancelled');
  await sleep(5);
  cancelled.cancel({ force: true });
  const closed = jobs.close({ mountEnds: true });
  open();
  await closed;
  assert.deepEqual(forgotten, ['cancelled']);
  assert.throws(() => begin('late'), /The mount is ending/);
});
