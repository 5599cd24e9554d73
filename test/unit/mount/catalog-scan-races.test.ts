/** Scans beside closings: what was seen of a file before it was closed here makes it no other one. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { drivers } from '../../../drivers/index.ts';
import { PARALLEL_LOOKS } from '../../../mount/catalog/listing.ts';
import { guestOffset } from '../../../src/base/units.ts';
import { DriverRegistry } from '../../../src/block/registry.ts';
import { delayedFile } from '../../support/delayed-file.ts';
import { stub, writeStub } from '../../support/stub-format.ts';
import { catalogFixture, contentOf, eventually, lookup } from './catalog-fixture.ts';

const WHEN = [
  { newFiles: 1, when: 'after the scan has looked at it' },
  { newFiles: PARALLEL_LOOKS, when: 'before the scan comes to it' },
];

for (const { newFiles, when } of WHEN) {
  for (const header of [{}, { dataFile: 'zz.dat' }]) {
    const kind = header.dataFile === undefined ? 'an image' : 'an image with a data file';
    test(`${kind} that is written and closed during a scan, ${when}, is no other one for it`, async (t) => {
      const f = await catalogFixture(t);
      await writeFile(join(f.images, 'zz.dat'), Buffer.alloc(1000, 1));
      await writeStub(join(f.images, 'zz.stub'), header, Buffer.alloc(1000, 1));
      let goOn = (): void => undefined;
      const going = new Promise<void>((resolve) => {
        goOn = resolve;
      });
      let held = 0;
      const file = delayedFile(null, {
        before: async (_operation, _offset, _length, path) => {
          if (!path.includes('new')) return;
          held++;
          await going;
        },
      });
      const others = drivers.filter((driver) => driver.name !== 'file');
      const catalog = await f.mount({ registry: new DriverRegistry([...others, file, stub]) });
      const entry = await lookup(catalog, 'zz.raw');
      await entry.view.open();
      for (let i = 0; i < newFiles; i++) await writeStub(join(f.images, `new-${i}.stub`));
      const scan = catalog.rescan();
      await eventually('the scan is held', () => held === newFiles);
      // Long enough for another time of change.
      await sleep(50);
      await entry.view.write(guestOffset(0), Buffer.alloc(500, 2));
      await entry.view.close();
      goOn();
      await scan;
      assert.equal(catalog.byNodeId(entry.nodeId), await lookup(catalog, 'zz.raw'), 'its own node');
      assert.equal((await contentOf(entry))[0], 2);
    });
  }
}
