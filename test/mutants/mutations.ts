/**
 * Steps of the protocols that hold data safe, each left out in turn. A mutation names a piece of the built program, what takes
 * its place, and the tests of which one must fail.
 */

import { AHEAD_MUTATIONS } from './ahead-mutations.ts';
import { AT_ONCE_MUTATIONS } from './at-once-mutations.ts';
import { JOB_MUTATIONS } from './job-mutations.ts';
import { SYNC_MUTATIONS } from './sync-mutations.ts';

export interface Mutation {
  /** The step that is left out. */
  readonly step: string;
  /** Below `dist/`. */
  readonly file: string;
  readonly find: string;
  readonly replace: string;
  readonly tests: readonly string[];
}

const PROTOCOL = [
  'test/reference/translation-protocol.test.js',
  'test/reference/translation-views.test.js',
];
const POWER_CUT = ['test/crash/power-cut.test.js'];
const EVERY_PREFIX = ['test/crash/every-prefix.test.js'];
const BITMAPS = ['test/crash/bitmap-power-cut.test.js'];
const SNAPSHOTS = ['test/crash/snapshot-power-cut.test.js'];
const ADD_COW = ['test/crash/add-cow-power-cut.test.js'];
const OVERLAP = ['test/qemu/run-time-corruption.test.js'];
const FULL_JOURNAL = ['test/crash/sigkill-full-journal.test.js'];
const SIGKILL = ['test/crash/sigkill.test.js'];
const HISTORIES = ['test/reference/qcow2-concurrency.test.js'];
const JOURNAL = ['test/crash/sigkill-journal.test.js'];
const CONCURRENCY = ['test/conformance/qcow2-concurrency.test.js', ...HISTORIES, ...SIGKILL];
const BACKUP = [
  'test/unit/block/copy-before-write.test.js',
  'test/reference/backup.test.js',
  'test/reference/backup-workers.test.js',
];
const MIRROR = [
  'test/reference/mirror.test.js',
  'test/reference/mirror-errors.test.js',
  'test/reference/mirror-cancel.test.js',
  'test/reference/mirror-model.test.js',
];
const SUBCLUSTERS = ['test/qemu/subclusters.test.js', ...HISTORIES];

export const MUTATIONS: readonly Mutation[] = [
  {
    step: 'the count of a host cluster that packed ones share is journaled when it is taken',
    file: 'drivers/qcow2/compressed-write.js',
    find: 'this.#state.tell([refcounts.set(block, tail.cluster, count + 1)]);',
    replace: 'refcounts.set(block, tail.cluster, count + 1);',
    tests: JOURNAL,
  },
  {
    step: 'what packed clusters share is counted down in steps of one',
    file: 'drivers/qcow2/release.js',
    find: 'for (let now = count - 1; now >= count - gone; now--)',
    replace: 'for (const now of [count - gone])',
    tests: JOURNAL,
  },
  {
    step: 'a journal that does not fit the image is forgotten',
    file: 'drivers/qcow2/replay.js',
    find: `        journal?.begin();
        journal?.end();`,
    replace: '',
    tests: JOURNAL,
  },
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
    step: 'a header field that could not be synced is put back',
    file: 'drivers/qcow2/state.js',
    find: 'await this.file.write(guestOffset(at), before).catch(() => undefined);',
    replace: '',
    tests: ['test/unit/drivers/qcow2/failed-steps.test.js'],
  },
  {
    step: 'a qcow2 header with another backing link that could not be synced is put back',
    file: 'drivers/qcow2/header-cluster.js',
    find: 'await file.write(guestOffset(0), before).catch(() => undefined);',
    replace: '',
    tests: ['test/unit/drivers/qcow2/failed-steps.test.js'],
  },
  {
    step: 'an add-cow header with another backing link that could not be synced is put back',
    file: 'drivers/add-cow/header-write.js',
    find: 'await file.write(guestOffset(0), header.fields).catch(() => undefined);',
    replace: '',
    tests: ['test/unit/drivers/add-cow/header-changes.test.js'],
  },
  {
    step: 'a scan that has seen a file before we closed it does not take it for another one',
    file: 'mount/catalog/image-entry.js',
    find: 'isSame && this.#seenMs >= sinceMs',
    replace: 'false',
    tests: ['test/unit/mount/catalog.test.js'],
  },
  {
    step: 'what is known of an image since a scan has looked at it stays',
    file: 'mount/catalog/image-entry.js',
    find: 'if (this.inspection === found.inspectionBefore)',
    replace: '',
    tests: ['test/unit/mount/catalog.test.js'],
  },
  {
    step: 'an add-cow image that becomes complete is waited for before its size changes',
    file: 'drivers/add-cow/resize.js',
    find: `            // One that is under way may be about to say that all of it is in the image file.
            await state.schedule.request();`,
    replace: '',
    tests: ['test/unit/drivers/add-cow/header-changes.test.js'],
  },
  {
    step: 'a worker makes its sequence odd before it loads entries',
    file: 'src/translation/hazards.js',
    find: `    enter() {
        Atomics.add(this.#words, this.#at + HAZARD_SEQUENCE, 1);`,
    replace: '    enter() {',
    tests: PROTOCOL,
  },
  {
    step: 'a worker publishes its pages before it enters',
    file: 'src/translation/hazards.js',
    find: 'Atomics.store(words, at + HAZARD_LAST_PAGE, lastPage);',
    replace: '',
    tests: PROTOCOL,
  },
  {
    step: 'a worker looks at the first word again after the second',
    file: 'src/translation/lookup.js',
    find: 'if (Atomics.load(words, entry) !== word0)',
    replace: 'if (false)',
    tests: PROTOCOL,
  },
  {
    step: 'a worker looks at the view again after it has entered',
    file: 'src/translation/lookup.js',
    find: 'Atomics.load(words, record + VIEW_PAGE_BITS) - 1 === bits &&',
    replace: '',
    tests: PROTOCOL,
  },
  {
    step: 'an entry is taken away before it is filled anew',
    file: 'src/translation/translation-table.js',
    find: `        Atomics.store(words, at, 0);
        if (permissions === 0`,
    replace: '        if (permissions === 0',
    tests: PROTOCOL,
  },
  {
    step: 'a closed view waits for the workers',
    file: 'src/translation/translation-table.js',
    find: 'await this.quiesce({ view, firstPage: SYNC_PAGE, lastPage: PAGE_LIMIT });',
    replace: '',
    tests: PROTOCOL,
  },
  {
    step: 'an evicted slot waits for the workers',
    file: 'src/translation/translation-table.js',
    find: 'void this.quiesce({ view, firstPage, lastPage: firstPage + ENTRIES_PER_SLICE - 1 }).then(() => {',
    replace: 'void Promise.resolve().then(() => {',
    tests: PROTOCOL,
  },
  {
    step: 'the control plane waits for a worker that uses the pages',
    file: 'src/translation/hazards.js',
    find: 'if (this.isUsing(worker, range))',
    replace: 'if (false)',
    tests: PROTOCOL,
  },
  {
    step: 'data and refcounts are synced before entries name them',
    file: 'drivers/qcow2/checkpoint.js',
    find: `        await Promise.all([file.flush(), state.flushClusters()]);
        await writeMapping(state, covered);`,
    replace: '        await writeMapping(state, covered);',
    tests: POWER_CUT,
  },
  {
    step: 'entries are synced before a flush is answered',
    file: 'drivers/qcow2/checkpoint.js',
    find: 'if (covered.slices.length + covered.l1.length > 0)',
    replace: 'if (false)',
    tests: POWER_CUT,
  },
  {
    step: 'new L2 tables are written before the L1 table names them',
    file: 'drivers/qcow2/checkpoint.js',
    find: 'await file.write(guestOffset(offset), content ?? new Uint8Array(state.clusterBytes));',
    replace: '',
    tests: POWER_CUT,
  },
  {
    step: 'refcounts are written before the entries',
    file: 'drivers/qcow2/checkpoint.js',
    find: 'await writeRefcounts(state, covered);',
    replace: '',
    tests: POWER_CUT,
  },
  {
    step: 'a change of mapping is journaled before its write is answered',
    file: 'drivers/qcow2/state.js',
    find: 'return this.journaled.tell(changes);',
    replace: 'return true;',
    tests: SIGKILL,
  },
  {
    step: 'the journal is taken up by the next engine',
    file: 'drivers/qcow2/image.js',
    find: 'if (await replayJournal(this.#state))',
    replace: 'if (false)',
    tests: SIGKILL,
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
    find: 'await this.#copyKept(found);',
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
    file: 'drivers/qcow2/write.js',
    find: 'await request.readGuest(guestOffset(start), buffer.subarray(0, inside));',
    replace: '',
    tests: SUBCLUSTERS,
  },
  {
    step: 'a write waits until what it changes was copied',
    file: 'src/block/copy-before-write.js',
    find: 'await this.#admitted(offset, Math.min(offset + lengthBytes, this.#left.lengthBytes));',
    replace: '',
    tests: BACKUP,
  },
  {
    step: 'a write waits for a copy that is in flight',
    file: 'src/block/copy-before-write.js',
    find: 'const waits = this.#flightsIn(start, end).map((f) => f.ended);',
    replace: 'const waits = []; if (this.#left.nextDirty(start, end) === null) return;',
    tests: BACKUP,
  },
  {
    step: 'pages have no write permission before their blocks are done',
    file: 'src/block/copy-before-write.js',
    find: 'await node.dirtyBitmaps.add(this.#done);',
    replace: '',
    tests: BACKUP,
  },
  {
    step: 'blocks whose copy failed are left again',
    file: 'src/block/copy-before-write.js',
    find: 'this.#left.mark(start, lengthBytes);',
    replace: '',
    tests: BACKUP,
  },
  {
    step: 'a bitmap keeps what was written during a backup that succeeds',
    file: 'src/job/frozen-bitmap.js',
    find: 'this.#root.dirtyBitmaps.replaceContent(this.#bitmap, this.#successor.content);',
    replace: 'this.#root.dirtyBitmaps.clear(this.#bitmap, 0, this.content.lengthBytes);',
    tests: BACKUP,
  },
  {
    step: 'a data file is synced before entries name its clusters',
    file: 'drivers/qcow2/checkpoint.js',
    find: 'await Promise.all([file.flush(), state.flushClusters()]);',
    replace: 'await file.flush();',
    tests: ['test/crash/data-file-power-cut.test.js'],
  },
  {
    step: 'a larger refcount table is on disk before the header names it',
    file: 'drivers/qcow2/allocator.js',
    find: `        await file.flush();
        await moveRefcountTable(tableOffset, plan.tableClusters);`,
    replace: '        await moveRefcountTable(tableOffset, plan.tableClusters);',
    tests: EVERY_PREFIX,
  },
  {
    step: 'a larger L1 table is on disk before the header names it',
    file: 'drivers/qcow2/resize.js',
    find: `        await file.flush();
        const old = {`,
    replace: '        const old = {',
    tests: EVERY_PREFIX,
  },
  {
    step: 'what a smaller size cuts off is unmapped on disk before the size is',
    file: 'drivers/qcow2/resize.js',
    find: `            await state.schedule.request();
            await state.writeHeaderDurably(HEADER.size`,
    replace: '            await state.writeHeaderDurably(HEADER.size',
    tests: EVERY_PREFIX,
  },
  {
    step: 'nothing is packed into a host cluster of which something was unmapped',
    file: 'drivers/qcow2/state.js',
    find: '            this.compressedUnmapped(first, last);',
    replace: '',
    tests: ['test/conformance/qcow2-packed.test.js'],
  },
  {
    step: 'dirty bitmaps that record are marked before the first write',
    file: 'drivers/qcow2/image.js',
    find: 'await this.#bitmaps.holdRecording();',
    replace: '',
    tests: BITMAPS,
  },
  {
    step: 'the marks of dirty bitmaps are synced before a write goes on',
    file: 'drivers/qcow2/persistent-bitmaps.js',
    find: `        await file.flush();
        for (const entry of wanted) {`,
    replace: '        for (const entry of wanted) {',
    tests: BITMAPS,
  },
  {
    step: 'dirty bitmaps are on disk and counted before the header names them',
    file: 'drivers/qcow2/bitmap-writer.js',
    find: 'await schedule.request();',
    replace: '',
    tests: BITMAPS,
  },
  {
    step: 'the dirty bit is set before a snapshot changes refcounts',
    file: 'drivers/qcow2/snapshot-change.js',
    find: 'await this.#markDirty(true);',
    replace: '',
    tests: SNAPSHOTS,
  },
  {
    step: 'what a snapshot names is on disk before the header names the snapshot',
    file: 'drivers/qcow2/snapshot-change.js',
    find: `            await steps.prepare();
            await this.sync();`,
    replace: '            await steps.prepare();',
    tests: SNAPSHOTS,
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
    find: 'if (!map.isTableOwned(l1Index) || !metadata.isSaved(table / clusterBytes))',
    replace: 'if (true)',
    tests: OVERLAP,
  },
  {
    step: 'no image is written of whose tables two lie in one place',
    file: 'drivers/qcow2/image.js',
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
    step: 'the image file of add-cow is synced before the bits',
    file: 'drivers/add-cow/checkpoint.js',
    find: 'await image.flush();',
    replace: '',
    tests: ADD_COW,
  },
  {
    step: 'the bits of add-cow are synced before a flush is answered',
    file: 'drivers/add-cow/checkpoint.js',
    find: `        await file.flush();
        bitmap.written(snapshots);`,
    replace: '        bitmap.written(snapshots);',
    tests: ADD_COW,
  },
  {
    step: 'a new bit of add-cow is journaled before its write is answered',
    file: 'drivers/add-cow/state.js',
    find: `        const stamp = stampOf(this.header.fields);`,
    replace: '        return;\n        const stamp = 0;',
    tests: ['test/crash/add-cow-sigkill.test.js'],
  },
  {
    step: 'a checkpoint forgets no record that came after it began, though one in between has failed',
    file: 'src/block/restart-journal-file.js',
    find: 'if (generation < this.#oldestKept)',
    replace: 'if (generation < this.#current)',
    tests: ['test/unit/block/restart-journal-file.test.js'],
  },
  {
    step: 'nothing is told to the journal while a checkpoint covers what it has not taken',
    file: 'src/block/journaled-changes.js',
    find: `        if (this.#covered.length > 0)
            return false;`,
    replace: '',
    tests: FULL_JOURNAL,
  },
  {
    step: 'what the journal has not taken goes before what comes after it',
    file: 'src/block/journaled-changes.js',
    find: `        while (this.#untold.length > 0) {`,
    replace: `        this.#untold = [];
        while (this.#untold.length > 0) {`,
    tests: FULL_JOURNAL,
  },
  {
    step: 'a write in place waits for what the journal has not taken of its cluster',
    file: 'drivers/qcow2/image.js',
    find: 'await this.#state.settled();',
    replace: '',
    tests: FULL_JOURNAL,
  },
  {
    step: 'no page may be written beside the driver that the journal does not know of',
    file: 'drivers/qcow2/image.js',
    find: "const isKept = m.kind === 'data' && m.inPlace && this.#state.journaled.isBehind;",
    replace: 'const isKept = false;',
    tests: FULL_JOURNAL,
  },
  {
    step: 'a write at once waits for what the journal has not taken of its cluster',
    file: 'drivers/qcow2/write-at-once.js',
    find: 'clusterFile.driver.worksAtOnce !== true || state.journaled.isBehind',
    replace: 'clusterFile.driver.worksAtOnce !== true',
    tests: FULL_JOURNAL,
  },
  {
    step: 'a mirror waits for the writes that a range has been taken out of the bitmap for',
    file: 'src/job/mirror-copy.js',
    find: 'await root.quiesceChanges();',
    replace: '',
    tests: MIRROR,
  },
  {
    step: 'a range that a mirror could not copy is dirty again',
    file: 'src/job/mirror-copy.js',
    find: `            this.#bitmap.mark(start, lengthBytes);
            // Nobody`,
    replace: '            // Nobody',
    tests: MIRROR,
  },
  {
    step: 'a write that did not reach the target of a mirror is dirty',
    file: 'src/job/write-through.js',
    find: `            bitmap.mark(start, lengthBytes);
            failed(`,
    replace: '            failed(',
    tests: MIRROR,
  },
  {
    step: 'a write to a mirror that is write-blocking waits for the copy of its range',
    file: 'src/job/write-through.js',
    find: 'await lockOrAborted(locks, { start, end }, signal)',
    replace: '{ [Symbol.dispose]: () => undefined }',
    tests: MIRROR,
  },
  {
    step: 'a bit of a mirror that outlives its engine is set before the write that it stands for',
    file: 'src/block/dirty-tracking.js',
    find: 'this.persistence?.mark(start, lengthBytes);',
    replace: '',
    tests: ['test/crash/mirror-sigkill.test.js'],
  },
  {
    step: 'a bit of a mirror that is write-blocking is set before the write',
    file: 'src/job/write-through.js',
    find: 'bitmap.persistence?.mark(change.offset, change.lengthBytes);',
    replace: '',
    tests: MIRROR,
  },
  {
    step: 'the target of a mirror is flushed before its pivot',
    file: 'src/job/mirror.js',
    find: `        await root.flush();
        await this.#flushTarget();`,
    replace: '        await root.flush();',
    tests: MIRROR,
  },
  {
    step: 'what a view stands for is remembered before its root is swapped',
    file: 'mount/catalog/pivot.js',
    find: `    const candidate = await remember(scene, target, []);
    image.pivoted(candidate, inspection);
    const old = image.view.swapRoot(target);`,
    replace: `    const old = image.view.swapRoot(target);
    const candidate = await remember(scene, target, []);
    image.pivoted(candidate, inspection);`,
    tests: ['test/unit/mount/pivot.test.js'],
  },
  ...AHEAD_MUTATIONS,
  ...AT_ONCE_MUTATIONS,
  ...SYNC_MUTATIONS,
  ...JOB_MUTATIONS,
];
