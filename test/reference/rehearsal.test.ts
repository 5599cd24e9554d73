/** What an engine rehearses is what it does for guests: the images have all of it afterwards, and nothing stays open. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { RehearsedWrites } from '../../mount/kernel/rehearsed-writes.ts';
import { type Rehearsed, rehearseRound } from '../../src/daemon/rehearsal-round.ts';
import { bytesOfImage } from '../support/chain-layers.ts';
import { assertClean } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';

const KIB = 1024;
const CLUSTERS = 1024;
const BASE_BYTE = 1;

interface Round extends Rehearsed {
  readonly directory: string;
  readonly turns: number;
}

const rehearsed = async (t: Cleanup, round: number, most = Infinity): Promise<Round> => {
  const directory = join(await scratchDirectory(t), 'rehearsal');
  await mkdir(directory);
  let turns = 0;
  const pace = {
    get isOver() {
      return turns >= most;
    },
    turn: async () => void turns++,
  };
  return { directory, ...(await rehearseRound({ directory, round, pace })), turns };
};

for (const [round, clusterBytes] of [
  [0, 4 * KIB],
  [1, 8 * KIB],
] as const) {
  test(`clusters of ${clusterBytes} bytes: half of each is written, and half of it copied`, async (t) => {
    const { directory, writes, pages, turns } = await rehearsed(t, round);
    assert.ok(pages > CLUSTERS / 2, `${pages} pages came along`);
    assert.ok(
      writes > CLUSTERS && writes < 2 * CLUSTERS && turns >= CLUSTERS / 4,
      `${writes} writes in ${turns} turns`,
    );
    for (const name of ['base', 'overlay', 'plain']) await assertClean(join(directory, name));
    const bytes = await bytesOfImage(directory, join(directory, 'overlay'), 'qcow2');
    for (let cluster = 0; cluster < CLUSTERS; cluster++) {
      const start = cluster * clusterBytes;
      const halves = [0, 1].map((half) => {
        const at = start + half * (clusterBytes / 2);
        return new Set(bytes.subarray(at, at + clusterBytes / 2));
      });
      const written = cluster % 2;
      assert.deepEqual([...(halves[written] ?? [])], [RehearsedWrites.BYTE], `cluster ${cluster}`);
      assert.deepEqual([...(halves[1 - written] ?? [])], [BASE_BYTE], `cluster ${cluster}, copied`);
    }
    const plain = await bytesOfImage(directory, join(directory, 'plain'), 'qcow2');
    assert.deepEqual([...new Set(plain)], [RehearsedWrites.BYTE], 'all of it is written');
  });
}

test('one that is ended closes what it has opened', async (t) => {
  const descriptors = (): number => readdirSync('/proc/self/fd').length;
  await rehearsed(t, 0, 70);
  const before = descriptors();
  const { writes } = await rehearsed(t, 0, 70);
  assert.ok(writes > 0 && writes < 40, `${writes} writes`);
  assert.equal(descriptors(), before);
});
