/**
 * A stream under a guest that writes, against a model of bytes: whatever the order in which reads and writes end, the guest
 * sees what it wrote and what was below, and QEMU finds the image clean and independent afterwards.
 */
import assert from 'node:assert/strict';
import { mkdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { silentLog } from '../../src/base/log.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import type { View } from '../../src/block/view.ts';
import { JobList } from '../../src/job/job-list.ts';
import { Stream } from '../../src/job/stream.ts';
import { delayedFile } from '../support/delayed-file.ts';
import { imageView } from '../support/image-view.ts';
import { assertClean, qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';
import { vdiskfs } from '../support/vdiskfs.ts';

const KIB = 1024;
const TOP_BYTES = 1024 * KIB;

interface Write {
  readonly kind: 'write' | 'discard' | 'zero' | 'read';
  readonly offset: number;
  readonly lengthBytes: number;
}

const writes = fc.array(
  fc.record({
    kind: fc.constantFrom<Write['kind']>('write', 'write', 'discard', 'zero', 'read'),
    offset: fc.nat(TOP_BYTES - 1),
    lengthBytes: fc.integer({ min: 1, max: 96 * KIB }),
  }),
  { minLength: 5, maxLength: 40 },
);

const layouts = fc.record({
  top: fc.constantFrom<'1.1' | '0.10' | 'subclusters' | 'add-cow'>(
    '1.1',
    '0.10',
    'subclusters',
    'add-cow',
  ),
  topClusterBytes: fc.constantFrom(4 * KIB, 64 * KIB),
  midBytes: fc.constantFrom(384 * KIB, 1000 * KIB + 512, 1024 * KIB),
  baseBytes: fc.constantFrom(300 * KIB, 900 * KIB + 512, 1024 * KIB),
  baseFormat: fc.constantFrom('raw', 'qcow2'),
  keepBase: fc.boolean(),
  seed: fc.integer({ min: 1, max: 2 ** 30 }),
  writes,
});

type Layout = typeof layouts extends fc.Arbitrary<infer T> ? T : never;

/** base ← mid ← top, each with some content of its own. */
const makeChain = async (directory: string, layout: Layout): Promise<void> => {
  const at = (name: string): string => join(directory, name);
  const { top, topClusterBytes, midBytes, baseBytes, baseFormat } = layout;
  await qemuImg(['create', '-q', '-f', baseFormat, at('base'), String(baseBytes)]);
  const content = ['write -P 1 4k 50k', 'write -P 2 200k 90k', 'write -P 5 292k 8k'];
  // Past the end of a short layer in between, where the guest sees zeros.
  if (baseBytes > 600 * KIB) content.push('write -P 8 380k 200k');
  await qemuIo(at('base'), content, ['-f', baseFormat]);
  const over = (below: string, format: string): string[] => ['-b', below, '-F', format];
  await qemuImg([
    'create',
    '-q',
    '-f',
    'qcow2',
    ...over('base', baseFormat),
    at('mid'),
    String(midBytes),
  ]);
  await qemuIo(at('mid'), ['write -P 3 40k 30k', 'write -z 210k 70k', 'write -P 6 300k 20k']);
  if (top === 'add-cow') {
    await writeFile(at('top.img'), '');
    await truncate(at('top.img'), TOP_BYTES);
    const names = `image_file=top.img,backing_file=mid,backing_fmt=qcow2,cluster_size=${topClusterBytes}`;
    const made = await vdiskfs(['create', '-f', 'add-cow', '-o', names, at('top')]);
    assert.equal(made.status, 0, made.stderr);
    return;
  }
  const options =
    top === 'subclusters'
      ? `extended_l2=on,cluster_size=${Math.max(16 * KIB, topClusterBytes)}`
      : `compat=${top},cluster_size=${topClusterBytes}`;
  const size = String(TOP_BYTES);
  await qemuImg([
    'create',
    '-q',
    '-f',
    'qcow2',
    '-o',
    options,
    ...over('mid', 'qcow2'),
    at('top'),
    size,
  ]);
  await qemuIo(at('top'), ['write -P 4 100k 20k']);
};

/** Writes of the guest, one after the other; the model follows. */
const guest = async (view: View, model: Buffer, steps: readonly Write[]): Promise<void> => {
  for (const [index, step] of steps.entries()) {
    const length = Math.min(step.lengthBytes, TOP_BYTES - step.offset);
    const at = guestOffset(step.offset);
    const range = model.subarray(step.offset, step.offset + length);
    switch (step.kind) {
      case 'read': {
        const seen = Buffer.alloc(length);
        await view.read(at, seen);
        assert.ok(seen.equals(range), `read ${index} at ${step.offset}`);
        break;
      }
      case 'write': {
        const bytes = Buffer.alloc(length, 16 + index);
        await view.write(at, bytes);
        bytes.copy(range);
        break;
      }
      case 'discard':
        await view.punchHole(at, length);
        range.fill(0);
        break;
      case 'zero':
        await view.zeroRange(at, length, { keepSize: true });
        range.fill(0);
    }
  }
};

/** Every operation of every file ends after another time, 0 to 3 ms. */
const shuffled = (seed: number): DriverDescriptor => {
  let state = seed;
  return delayedFile(null, {
    before: async () => {
      state = (state * 48271) % 0x7fffffff;
      await sleep(state % 4);
    },
  });
};

test(`guest data wins over copies, in every order of I/O (seed ${SEED})`, async (t) => {
  const root = await scratchDirectory(t);
  let run = 0;
  await fc.assert(
    fc.asyncProperty(layouts, async (layout) => {
      const directory = join(root, String(run++));
      await mkdir(directory);
      await makeChain(directory, layout);
      await streamAndCompare(directory, layout);
    }),
    { seed: SEED, numRuns: countOf(8) },
  );
});

const streamAndCompare = async (directory: string, layout: Layout): Promise<void> => {
  const top = join(directory, 'top');
  const expected = join(directory, 'expected');
  const isAddCow = layout.top === 'add-cow';
  // An empty overlay shows what lies below it, longer or shorter.
  await qemuImg(['convert', '-O', 'raw', isAddCow ? join(directory, 'mid') : top, expected]);
  if (isAddCow) await truncate(expected, TOP_BYTES);
  const model = await readFile(expected);
  const graph = await testGraph({ directory, file: shuffled(layout.seed) });
  const format = layout.top === 'add-cow' ? 'add-cow' : 'qcow2';
  const view = imageView(graph, { path: top, format }, 'top.raw');
  const opened = await view.open();
  const base = layout.keepBase ? (opened.backing?.backing ?? null) : null;
  const jobs = new JobList(silentLog);
  const job = jobs.start({
    id: 'top',
    type: 'stream',
    speed: 0,
    autoFinalize: true,
    autoDismiss: false,
    nodes: [],
    work: new Stream({
      view,
      root: opened,
      base,
      backingFile: null,
      onError: 'report',
      replaceBacking: (overlay, below) => graph.replaceBacking(overlay, below),
      ended: async () => undefined,
    }),
  });
  await guest(view, model, layout.writes);
  await job.concluded;
  assert.equal(job.error, null);
  assert.equal(opened.backing, base);
  const seen = Buffer.alloc(TOP_BYTES);
  await view.read(guestOffset(0), seen);
  assert.ok(seen.equals(model), 'what the guest sees after the stream');
  await view.close();
  assert.equal(graph.nodes.size, 0, 'nothing stays open');
  await writeFile(expected, model);
  if (isAddCow) await assertAddCow(directory, { expected, isComplete: base === null });
  else await assertQcow2(directory, { expected, backing: base === null ? undefined : 'base' });
};

const assertQcow2 = async (
  directory: string,
  { expected, backing }: { readonly expected: string; readonly backing: string | undefined },
): Promise<void> => {
  const top = join(directory, 'top');
  await assertClean(top);
  await qemuImg(['compare', '-f', 'raw', '-F', 'qcow2', expected, top]);
  const info = (await qemuImgJson('info', [top])) as { 'backing-filename'?: string };
  assert.equal(info['backing-filename'], backing);
};

/** Once everything is in it, the image file alone is the disk. */
const assertAddCow = async (
  directory: string,
  { expected, isComplete }: { readonly expected: string; readonly isComplete: boolean },
): Promise<void> => {
  const top = join(directory, 'top');
  const checked = await vdiskfs(['check', '-f', 'add-cow', top]);
  assert.equal(checked.status, 0, checked.stdout + checked.stderr);
  const compared = await vdiskfs(['compare', '-f', 'raw', '-F', 'add-cow', expected, top]);
  assert.equal(compared.status, 0, compared.stdout + compared.stderr);
  if (!isComplete) return;
  await qemuImg(['compare', '-f', 'raw', '-F', 'raw', expected, join(directory, 'top.img')]);
};
