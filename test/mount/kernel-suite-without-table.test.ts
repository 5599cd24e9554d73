/** The same suite with the translation table switched off: every request is served by the control plane. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { vdiskfsJson } from '../support/vdiskfs.ts';
import { placeOf, KERNEL as subject } from './suite/subject.ts';
import { mountSuite } from './suite.ts';

interface Counted {
  readonly counters: { readonly hits: number; readonly faults: number };
}

process.env['VDISKFS_TRANSLATION_TABLE'] = 'off';

mountSuite(subject);

test('without the table no request is a hit, and what is read is right', async (t) => {
  const place = await placeOf(t, subject);
  const bytes = randomBytes(1 << 20);
  await writeFile(place.image('disk.raw'), bytes);
  const mounted = await place.mount();
  assert.deepEqual(await readFile(mounted.path('disk.raw')), bytes);
  const status = (await vdiskfsJson(['status', mounted.mountpoint])) as Counted;
  assert.equal(status.counters.hits, 0);
  assert.ok(status.counters.faults > 0);
});
