/** Who may change a cluster or a table, and when its place may be used again: locks, what is shared, corruption and repair. */
import type { Mutation } from './mutations.ts';

const SNAPSHOTS = ['test/crash/snapshot-power-cut.test.js'];
const OVERLAP = ['test/qemu/run-time-corruption.test.js'];
const SIGKILL = ['test/crash/sigkill.test.js'];
const HISTORIES = ['test/reference/qcow2-concurrency.test.js'];
const CONCURRENCY = ['test/conformance/qcow2-concurrency.test.js', ...HISTORIES, ...SIGKILL];
const SUBCLUSTERS = ['test/qemu/subclusters.test.js', ...HISTORIES];

export const CLUSTER_MUTATIONS: readonly Mutation[] = [
  {
    step: 'an evicted table is the one that everybody gets until the turn ends',
    file: 'src/block/table-cache.js',
    find: 'this.#leave(key, table);',
    replace: '',
    tests: ['test/unit/block/table-cache.test.js'],
  },
  {
    step: 'the file is not cut while its refcount table moves',
    file: 'drivers/qcow2/free-tail.js',
    find: 'while (!this.#allocator.isTableMoving)',
    replace: 'while (true)',
    tests: ['test/unit/drivers/qcow2/free-tail.test.js'],
  },
  {
    step: 'a freed cluster waits for those who still read it',
    file: 'drivers/qcow2/release.js',
    find: 'await request.quiesce();',
    replace: '',
    tests: CONCURRENCY,
  },
  {
    step: 'a cluster whose mapping changed is locked against a second allocation',
    file: 'drivers/qcow2/write.js',
    find: 'const m = await this.#lookup.mapping(guestOffset(offset + done), buffer.length - done);',
    replace:
      'lock.release(); const m = await this.#lookup.mapping(guestOffset(offset + done), buffer.length - done);',
    tests: CONCURRENCY,
  },
  {
    step: 'the subclusters of a shared cluster go along when one of them is written',
    file: 'drivers/qcow2/write.js',
    find: 'await this.#content.copyKept(found);',
    replace: '',
    tests: SUBCLUSTERS,
  },
  {
    step: 'a write into the place of a cluster ends before the next subcluster of data',
    file: 'drivers/qcow2/write.js',
    find: 'runsOf(allocated & ~((1 << subcluster) - 1))',
    replace: 'runsOf(0)',
    tests: SUBCLUSTERS,
  },
  {
    step: 'a subcluster that is not written as a whole is filled up from below',
    file: 'drivers/qcow2/target-content.js',
    find: 'await request.readGuest(guestOffset(start), buffer.subarray(0, inside));',
    replace: '',
    tests: SUBCLUSTERS,
  },
  {
    step: 'nothing is packed into a host cluster of which something was unmapped',
    file: 'drivers/qcow2/state.js',
    find: '            this.compressedUnmapped(first, last);',
    replace: '',
    tests: ['test/conformance/qcow2-packed.test.js'],
  },
  {
    step: 'what is shared with a new snapshot is not written in place any more',
    file: 'drivers/qcow2/snapshots.js',
    find: 'await tools.flags.clear(active);',
    replace: '',
    tests: SNAPSHOTS,
  },
  {
    step: 'no write lands in the metadata of a snapshot by an L2 entry',
    file: 'drivers/qcow2/lookup.js',
    find: 'if (isSaved)',
    replace: 'if (false)',
    tests: OVERLAP,
  },
  {
    step: 'no cluster is taken that the metadata of a snapshot lies in',
    file: 'drivers/qcow2/allocator.js',
    find: 'if (!metadata.isAny(cluster))',
    replace: 'if (!metadata.has(cluster))',
    tests: OVERLAP,
  },
  {
    step: 'no L2 table is changed that a snapshot keeps',
    file: 'drivers/qcow2/tables.js',
    find: 'if (!map.isTableOwned(l1Index) || !metadata.isSaved(hostCluster(table / clusterBytes)))',
    replace: 'if (true)',
    tests: OVERLAP,
  },
  {
    step: 'no image is written of whose tables two lie in one place',
    file: 'drivers/qcow2/prepare.js',
    find: 'refuseConflict(this.#state);',
    replace: '',
    tests: OVERLAP,
  },
  {
    step: 'a repair clears the dirty and corrupt bits of what is sound alone',
    file: 'drivers/qcow2/repair.js',
    find: "request.mode === 'all' && request.version === 3 && isSound",
    replace: "request.mode === 'all' && request.version === 3",
    tests: ['test/qemu/repair.test.js', 'test/fuzz/qcow2-structures.test.js'],
  },
  {
    step: 'block status: refcounts that could not be read once are no error for good',
    file: 'drivers/qcow2/image.js',
    find: 'hasPreallocatedMetadata(file, checkShapeOf(header)).catch(() => false);',
    replace: 'hasPreallocatedMetadata(file, checkShapeOf(header));',
    tests: ['test/reference/unread-refcounts.test.js'],
  },
];
