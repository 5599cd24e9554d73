/** The order in which things reach the disk, so that a power cut at any point leaves a sound image. */
import type { Mutation } from './mutations.ts';

const POWER_CUT = ['test/crash/power-cut.test.js'];
const EVERY_PREFIX = ['test/crash/every-prefix.test.js'];
const BITMAPS = ['test/crash/bitmap-power-cut.test.js'];
const SNAPSHOTS = ['test/crash/snapshot-power-cut.test.js'];
const ADD_COW = ['test/crash/add-cow-power-cut.test.js'];
const QCOW2_HEADER = ['test/unit/drivers/qcow2/owed-header.test.js'];
const FAILED_SNAPSHOTS = ['test/unit/drivers/qcow2/failed-snapshots.test.js'];
const MARKED_DIRTY = ['test/unit/drivers/qcow2/marked-dirty.test.js'];
const ADD_COW_HEADER = ['test/unit/drivers/add-cow/owed-header.test.js'];
const HEADER_CHANGES = ['test/unit/block/header-changes.test.js'];
const HEADERS = [...QCOW2_HEADER, ...ADD_COW_HEADER];

export const ORDER_MUTATIONS: readonly Mutation[] = [
  {
    step: 'a change of the header that has failed is put back',
    file: 'src/block/header-changes.js',
    find: 'await this.#takeBack(differenceOf({ at, before, after }), options);',
    replace: '',
    tests: ['test/unit/drivers/qcow2/failed-steps.test.js'],
  },
  {
    step: 'bytes of a header that were put back are synced',
    file: 'src/block/header-changes.js',
    find: `SYNC_FAILED;
            await this.file.flush();`,
    replace: 'SYNC_FAILED;',
    tests: HEADERS,
  },
  {
    step: 'one write of a header at a time, with what was read for it',
    file: 'src/block/header-changes.js',
    find: 'const turn = this.#last.then(run);',
    replace: 'const turn = run();',
    tests: HEADER_CHANGES,
  },
  {
    step: 'what is owed is put back while nobody else writes the header',
    file: 'src/block/header-changes.js',
    find: 'await this.#alone(() => this.#restore(owed));',
    replace: 'await this.#restore(owed);',
    tests: HEADER_CHANGES,
  },
  {
    step: 'a header that is made anew keeps what others have written meanwhile',
    file: 'drivers/qcow2/header-cluster.js',
    find: 'await changes.change(0, cluster.subarray(0, front), { from });',
    replace: 'await changes.change(0, cluster.subarray(0, front));',
    tests: HEADER_CHANGES,
  },
  {
    step: 'a flush of a qcow2 image puts the header back that is owed',
    file: 'drivers/qcow2/checkpoint.js',
    find: 'await headerChanges.putBack(covered.owed);',
    replace: '',
    tests: QCOW2_HEADER,
  },
  {
    step: 'a qcow2 header that is owed is put back before what the old one names is written',
    file: 'drivers/qcow2/checkpoint.js',
    find: 'await headerChanges.putBack(covered.owed);',
    replace: `await writeMapping(state, covered);
        await headerChanges.putBack(covered.owed);`,
    tests: QCOW2_HEADER,
  },
  {
    step: 'a qcow2 header that is owed asks for a checkpoint',
    file: 'drivers/qcow2/state.js',
    find: `this.unmapped.length > 0 ||
            this.headerChanges.owed !== null);`,
    replace: 'this.unmapped.length > 0);',
    tests: QCOW2_HEADER,
  },
  {
    step: 'a flush of an add-cow image puts the header back that is owed',
    file: 'drivers/add-cow/checkpoint.js',
    find: 'await headerChanges.putBack(owed);',
    replace: '',
    tests: ADD_COW_HEADER,
  },
  {
    step: 'an add-cow header that is owed asks for a checkpoint',
    file: 'drivers/add-cow/state.js',
    find: 'return this.bitmap.dirtyBytes > 0 || this.headerChanges.owed !== null;',
    replace: 'return this.bitmap.dirtyBytes > 0;',
    tests: ADD_COW_HEADER,
  },
  {
    step: 'a header is owed until the checkpoint that has put it back has ended',
    file: 'drivers/qcow2/checkpoint.js',
    find: 'await headerChanges.putBack(covered.owed);',
    replace: `await headerChanges.putBack(covered.owed);
        headerChanges.forget(covered.owed);`,
    tests: QCOW2_HEADER,
  },
  {
    step: 'the restart journal is told of a header that is owed',
    file: 'src/block/header-changes.js',
    find: 'tell(owed);',
    replace: '',
    tests: HEADERS,
  },
  {
    step: 'a qcow2 header that was owed by a killed engine is put back',
    file: 'drivers/qcow2/open.js',
    find: 'await takeUpOwedHeader(request);',
    replace: '',
    tests: QCOW2_HEADER,
  },
  {
    step: 'an L1 table that another program has used stays in force',
    file: 'drivers/qcow2/owed-header.js',
    find: 'if (await isUnused(file, header, owed))',
    replace: '',
    tests: QCOW2_HEADER,
  },
  {
    step: 'an L1 table that nobody has used is known by what was written to it',
    file: 'drivers/qcow2/owed-header.js',
    find: 'return Buffer.compare(witnessOfL1(found), owed.witness) === 0;',
    replace: 'return false;',
    tests: QCOW2_HEADER,
  },
  {
    step: 'a journal is not applied to a header that was owed and is another',
    file: 'drivers/qcow2/replay.js',
    find: 'if (!(await isPutBack(state.file, owed)))',
    replace: 'if (false)',
    tests: QCOW2_HEADER,
  },
  {
    step: 'an add-cow header that was owed by a killed engine is put back',
    file: 'drivers/add-cow/image.js',
    find: 'await takeUpOwedHeader(request);',
    replace: '',
    tests: ADD_COW_HEADER,
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
        await state.writeHeaderDurably(HEADER.l1Size`,
    replace: '        await state.writeHeaderDurably(HEADER.l1Size',
    tests: EVERY_PREFIX,
  },
  {
    step: 'a larger L1 table that did not come into force is given back',
    file: 'drivers/qcow2/resize.js',
    find: 'state.unmapped.push({ first, count: clusters });',
    replace: '',
    tests: QCOW2_HEADER,
  },
  {
    step: "a larger L1 table is nobody else's while the header may name it",
    file: 'drivers/qcow2/resize.js',
    find: 'state.unmapped.push({ first, count: clusters });',
    replace:
      'await this.#allocator.giveBack({ first, count: clusters, isFresh: false, changes: [] });',
    tests: QCOW2_HEADER,
  },
  {
    step: 'a larger L1 table that is owed is given back by who takes over',
    file: 'drivers/qcow2/resize.js',
    find: 'state.offer(countedDown(first, clusters));',
    replace: '',
    tests: QCOW2_HEADER,
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
    step: 'dirty bitmaps that record are marked before the first write',
    file: 'drivers/qcow2/prepare.js',
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
    step: 'new tables of a snapshot are counted under the dirty bit',
    file: 'drivers/qcow2/snapshot-change.js',
    find: `            await this.#markDirty(true);
            await this.#allocate(steps.lengths, taken);
            await this.#settle();`,
    replace: `            await this.#allocate(steps.lengths, taken);
            await this.#settle();
            await this.#markDirty(true);`,
    tests: ['test/crash/snapshot-sigkill.test.js'],
  },
  {
    step: 'what a snapshot names is on disk before the header names the snapshot',
    file: 'drivers/qcow2/snapshot-change.js',
    find: `            await steps.prepare(taken);
            await this.sync();`,
    replace: '            await steps.prepare(taken);',
    tests: SNAPSHOTS,
  },
  {
    step: 'what was taken for a snapshot is given back when its header was not written',
    file: 'drivers/qcow2/snapshot-change.js',
    find: 'if (state.headerChanges.owed === null)',
    replace: 'if (false)',
    tests: FAILED_SNAPSHOTS,
  },
  {
    step: 'nothing of a snapshot is taken back while its header is owed',
    file: 'drivers/qcow2/snapshot-change.js',
    find: 'if (state.headerChanges.owed === null)',
    replace: '',
    tests: QCOW2_HEADER,
  },
  {
    step: 'a dirty bit that was left for the next opening stays',
    file: 'drivers/qcow2/snapshot-change.js',
    find: 'if (!this.#isRepairDue)',
    replace: '',
    tests: FAILED_SNAPSHOTS,
  },
  {
    step: 'a journal is taken up before the image is repaired',
    file: 'drivers/qcow2/open.js',
    find: `        await takeUpBeforeRepair(request, header);
        await repairDirty(request);`,
    replace: `        await repairDirty(request);
        await takeUpBeforeRepair(request, header);`,
    tests: FAILED_SNAPSHOTS,
  },
  {
    step: 'a data file is opened once by who takes a journal up before the repair',
    file: 'drivers/qcow2/open.js',
    find: 'opened ??= request.openDataFile(link);',
    replace: 'opened = request.openDataFile(link);',
    tests: MARKED_DIRTY,
  },
  {
    step: 'refcounts of an image that is to be repaired do not stand in the way of its journal',
    file: 'drivers/qcow2/replay.js',
    find: 'if ((state.header.incompatible & INCOMPATIBLE.dirty) !== 0)',
    replace: 'if (false)',
    tests: FAILED_SNAPSHOTS,
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
];
