/**
 * Images whose bitmaps extension, directory, tables or bits hold anything: an error that names the field, or bitmaps, but never
 * a crash, a hang, or memory beyond a bound.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import fc from 'fast-check';
import { BlockError } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const MEMORY_BYTES = 256 << 20;
const HANG_MS = 20_000;

/** Where the structures of an image lie, in the file. */
interface Places {
  readonly extension: number;
  readonly directory: number;
  readonly directoryBytes: number;
  readonly tables: readonly number[];
}

const placesOf = (image: Uint8Array): Places => {
  const view = viewOf(image);
  const magic = Buffer.from([0x23, 0x85, 0x28, 0x75]);
  const extension = Buffer.from(image.buffer, image.byteOffset, image.length).indexOf(magic);
  assert.ok(extension > 0);
  const directoryBytes = Number(view.getBigUint64(extension + 16));
  const directory = Number(view.getBigUint64(extension + 24));
  const tables: number[] = [];
  for (let at = directory; at < directory + directoryBytes; ) {
    tables.push(Number(view.getBigUint64(at)));
    at += Math.ceil((24 + view.getUint16(at + 18)) / 8) * 8;
  }
  return { extension, directory, directoryBytes, tables };
};

const HOSTILE_WORD = fc.oneof(
  fc.constantFrom(0, 1, 2, 3, 4, 0xff, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff),
  fc.nat(0xffff),
  fc.integer({ min: 0, max: 0xffff_ffff }),
);

interface Damage {
  readonly where: 'extension' | 'directory' | 'table';
  readonly word: number;
  readonly value: number;
}

const DAMAGE: fc.Arbitrary<Damage> = fc.record({
  where: fc.constantFrom('extension' as const, 'directory' as const, 'table' as const),
  word: fc.nat(24),
  value: HOSTILE_WORD,
});

const damaged = (sound: Uint8Array, places: Places, damage: readonly Damage[]): Uint8Array => {
  const image = Uint8Array.from(sound);
  const view = viewOf(image);
  for (const { where, word, value } of damage) {
    const table = places.tables[word % places.tables.length] ?? 0;
    const at = {
      extension: places.extension + 4 + (word % 7) * 4,
      directory: places.directory + ((word * 4) % places.directoryBytes),
      table: table + (word % 8) * 4,
    }[where];
    view.setUint32(at, value);
  }
  return image;
};

/** Errors of the image are what it may give; everything else is a fault of ours. */
const tolerate = async (work: Promise<unknown>): Promise<string | null> => {
  let timer: NodeJS.Timeout | undefined;
  const hang = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`hangs for ${HANG_MS} ms`)), HANG_MS);
  });
  try {
    await Promise.race([work, hang]);
    return null;
  } catch (error) {
    const text = error instanceof Error ? (error.stack ?? '') : String(error);
    assert.ok(error instanceof BlockError, text);
    assert.ok(!/this cannot be/.test(error.message), `an assertion met hostile input: ${text}`);
    return error.message;
  } finally {
    clearTimeout(timer);
  }
};

test('hostile bitmap directories and tables give errors that name the field, not crashes', async (t) => {
  const directory = await scratchDirectory(t);
  const made = `${directory}/made.qcow2`;
  const path = `${directory}/hostile.qcow2`;
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=1k', made, '30M']);
  for (const [name, granularity] of [
    ['first', '512'],
    ['second', '4k'],
    ['third', '1M'],
  ] as const) {
    await qemuImg(['bitmap', '--add', '-g', granularity, made, name]);
  }
  await qemuIo(made, ['write -P 1 0 20k', 'write -P 1 20M 300k'], ['-f', 'qcow2']);
  const sound = new Uint8Array(await readFile(made));
  const places = placesOf(sound);
  const before = process.memoryUsage().rss;
  let refused = 0;
  const open = async (readOnly: boolean): Promise<Node | null> => {
    const graph = await testGraph({ directory });
    let node: Node | null = null;
    const error = await tolerate(
      graph.open({ path, format: 'qcow2', readOnly }).then((opened) => {
        node = opened;
      }),
    );
    if (error !== null) {
      refused++;
      assert.match(error, /bitmap|header/, 'the error says what is wrong');
    }
    return node;
  };
  await fc.assert(
    fc.asyncProperty(fc.array(DAMAGE, { minLength: 1, maxLength: 3 }), async (damage) => {
      await writeFile(path, damaged(sound, places, damage));
      const reader = await open(true);
      await tolerate(reader?.driver.bitmapStore?.load() ?? Promise.resolve());
      await tolerate(reader?.close() ?? Promise.resolve());
      const writer = await open(false);
      if (writer === null) return;
      await tolerate(writer.write(guestOffset(5 << 20), new Uint8Array(5000)));
      for (const { name } of writer.dirtyBitmaps.bitmaps) {
        if (name === 'second') await tolerate(writer.dirtyBitmaps.remove(name));
      }
      await tolerate(writer.close());
    }),
    { numRuns: countOf(120), seed: SEED },
  );
  assert.ok(refused > 0, 'some of them must be refused');
  assert.ok(process.memoryUsage().rss - before < MEMORY_BYTES, 'memory stays within its bound');
});
