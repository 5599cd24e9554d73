/**
 * What workers answer an FSYNC to with no more than a sync of the image's file: at that moment all that was answered before is in
 * the file, so that a power cut after the sync leaves it. Random requests at once, over a file whose operations wait; the file is copied
 * whenever a worker would sync it, and read without the engine's memory and its journal.
 */
import assert from 'node:assert/strict';
import { copyFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { Syncs } from '../../src/translation/syncs.ts';
import { layoutOf } from '../../src/translation/table-layout.ts';
import { delayedFile } from '../support/delayed-file.ts';
import { imageView } from '../support/image-view.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';
import { viewTranslations } from '../support/view-translations.ts';

const VIEW = 7;
const BLOCK = 4096;
const BLOCKS = 64;
const ROUNDS = 150;
const MAX_SYNCS = 300;
const LONG_TURNS = 80;

interface Outcome {
  readonly synced: number;
  readonly refused: number;
}

const run = async (t: Cleanup, format: 'raw' | 'qcow2', seed: number): Promise<Outcome> => {
  const random = seededRandom(seed);
  const directory = await scratchDirectory(t);
  const path = join(directory, `disk.${format}`);
  if (format === 'raw') await writeFile(path, new Uint8Array(BLOCKS * BLOCK));
  else {
    const options = ['-o', 'cluster_size=4k', path, String(BLOCKS * BLOCK)];
    await qemuImg(['create', '-q', '-f', 'qcow2', ...options]);
  }
  const pause = async (most = 4): Promise<void> => {
    for (let turns = random.below(most); turns > 0; turns--) await setImmediate();
  };
  // Some writes outlast the flushes beside them.
  const file = delayedFile(path, {
    before: (operation) => pause(operation === 'write' && random.below(4) === 0 ? LONG_TURNS : 2),
    atOnce: () => random.below(2) === 0,
  });
  const graph = await testGraph({ directory, file, journalDirectory: directory });
  const view = imageView(graph, { path, format });
  const { table, translations, entry } = viewTranslations(view, VIEW, 2);
  const syncs = new Syncs(layoutOf(table), 0);
  /** What each block holds: the last answered byte; null while a change of it is in flight. */
  const answered: (number | null)[] = Array.from({ length: BLOCKS }, () => 0);
  const copies: { readonly name: string; readonly content: readonly (number | null)[] }[] = [];
  let refused = 0;

  const fsyncComes = (): void => {
    if (syncs.begin(VIEW) < 0) {
      refused++;
      return;
    }
    if (copies.length < MAX_SYNCS) {
      const name = join(directory, `copy${copies.length}`);
      copyFileSync(path, name);
      copies.push({ name, content: [...answered] });
    }
    syncs.end(0);
  };
  const change = async (first: number, blocks: number, byte: number): Promise<void> => {
    const offset = guestOffset(first * BLOCK);
    const bytes = blocks * BLOCK;
    answered.fill(null, first, first + blocks);
    if (byte !== 0) {
      const buffer = new Uint8Array(bytes).fill(byte);
      if (!view.writeAtOnce(offset, buffer)) await view.write(offset, buffer);
    } else if (random.below(2) === 0) await view.punchHole(offset, bytes);
    else await view.zeroRange(offset, bytes, { keepSize: true });
    answered.fill(byte, first, first + blocks);
    translations.filled(entry, offset, bytes);
    fsyncComes();
  };

  await view.open();
  translations.filled(entry, 0, BLOCK);
  for (let round = 0; round < ROUNDS; round++) {
    // No two requests of one round meet in a block.
    const parts = 1 + random.below(4);
    const requests = Array.from({ length: parts }, async (_, part) => {
      const blocks = 1 + random.below(3);
      const first = part * (BLOCKS / 4) + random.below(BLOCKS / 4 - blocks);
      await pause();
      if (random.below(3) === 0) await view.flush();
      else await change(first, blocks, random.below(4) === 0 ? 0 : 1 + random.below(255));
      fsyncComes();
    });
    await pause();
    fsyncComes();
    await Promise.all(requests);
    if (random.below(3) === 0) await view.flush();
    fsyncComes();
  }
  await view.close();
  const reading = await testGraph({ directory });
  for (const { name, content } of copies) {
    const bytes = new Uint8Array(BLOCKS * BLOCK);
    const copy = await reading.open({ path: name, format, readOnly: true });
    await copy.read(guestOffset(0), bytes);
    await reading.close(copy);
    for (const [block, byte] of content.entries()) {
      if (byte === null) continue;
      const found = bytes.subarray(block * BLOCK, (block + 1) * BLOCK);
      assert.ok(
        found.every((b) => b === byte),
        `${format}, seed ${seed}, ${name}: block ${block} is not what was answered`,
      );
    }
  }
  return { synced: copies.length, refused };
};

for (const format of ['qcow2', 'raw'] as const) {
  test(`${format}: what is answered is in the file whenever a worker may answer an FSYNC (seed ${SEED})`, {
    timeout: 300_000,
  }, async (t) => {
    for (let i = 0; i < countOf(2); i++) {
      const { synced, refused } = await run(t, format, SEED + i);
      t.diagnostic(`${synced} syncs were looked at, ${refused} were the engine's`);
      assert.ok(synced > 20 && refused > 20, `${synced} syncs, ${refused} of the engine's`);
    }
  });
}
