/**
 * The process that is killed: does random writes, discards and flushes to an image, several at once on ranges of their
 * own, and says on stdout when each begins and when it was answered. `test/crash/sigkill.test.ts` starts it.
 *
 *     node sigkill-guest.js IMAGE DIRECTORY JOURNALS SEED
 */
import { writeSync } from 'node:fs';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { testGraph } from '../support/test-graph.ts';
import { LANES, nextOperation } from './sigkill-operations.ts';

const [image = '', directory = '', journalDirectory = '', seedText = '0'] = process.argv.slice(2);

/** All of the line is said when it returns: a reader that is late is waited for. */
const say = (line: string): void => {
  let left = Buffer.from(`${line}\n`);
  while (left.length > 0) {
    try {
      left = left.subarray(writeSync(1, left));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
};

const graph = await testGraph({ directory, journalDirectory, cacheBytes: 64 << 10 });
const node = await graph.open({ path: image, format: null, readOnly: false });
say('open');

const runLane = async (lane: number): Promise<void> => {
  const random = seededRandom(Number(seedText) + lane);
  for (let i = 0; ; i++) {
    const op = nextOperation(random, lane, node.lengthBytes);
    say(`begin ${lane} ${i}`);
    const at = guestOffset(op.offset);
    if (op.kind === 'write') await node.write(at, op.bytes);
    else if (op.kind === 'discard') await node.discard(at, op.bytes.length);
    else if (op.kind === 'zero') await node.writeZeroes(at, op.bytes.length, { unmap: false });
    else await node.flush();
    say(`done ${lane} ${i}`);
  }
};

await Promise.all(Array.from({ length: LANES }, (_, lane) => runLane(lane)));
