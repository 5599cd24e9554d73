/** The restart journal: what a process that is killed has answered is there for the next one. */
import type { Mutation } from './mutations.ts';

const FULL_JOURNAL = ['test/crash/sigkill-full-journal.test.js'];
const FILLING_JOURNAL = ['test/crash/sigkill-filling-journal.test.js'];
const SIGKILL = ['test/crash/sigkill.test.js'];
const JOURNAL = ['test/crash/sigkill-journal.test.js'];
const MARK = ['test/crash/journal-mark.test.js'];
const FOREIGN = ['test/crash/foreign-use.test.js'];

export const JOURNAL_MUTATIONS: readonly Mutation[] = [
  {
    step: 'of an image that was not locked all the time, it is looked who names what the journal has taken',
    file: 'drivers/qcow2/replay.js',
    find: 'if (state.request.journal?.isContinued !== false)',
    replace: 'if (true)',
    tests: FOREIGN,
  },
  {
    step: 'the mark of the journal is in the header before the first record',
    file: 'drivers/qcow2/prepare.js',
    find: 'await headerChanges.note(HEADER.autoclear, field.subarray(0, 4));',
    replace: ';',
    tests: MARK,
  },
  {
    step: 'of an image that has lost the mark of the journal nothing is taken up',
    file: 'drivers/qcow2/open.js',
    find: 'await dropForeignJournal(request);',
    replace: '',
    tests: MARK,
  },
  {
    step: 'the mark of another journal is none',
    file: 'drivers/qcow2/journal-mark.js',
    find: 'if (view.getUint32(HEADER.autoclear) === markOf(journal))',
    replace: 'if (isMark(view.getUint32(HEADER.autoclear)))',
    tests: MARK,
  },
  {
    step: 'the mark of the journal goes with a clean close',
    file: 'drivers/qcow2/image.js',
    find: 'await this.#preparation.takeMarkAway();',
    replace: '',
    tests: MARK,
  },
  {
    step: 'a repair takes the mark of the journal away',
    file: 'drivers/qcow2/repair.js',
    find: `    if (version === 3)
        await clearUnknownAutoclear(file);`,
    replace: '',
    tests: MARK,
  },
  {
    step: 'it is looked what lies in the clusters that the journal has taken',
    file: 'drivers/qcow2/foreign-use.js',
    find: 'foreignMetadata(search) ??',
    replace: '',
    tests: FOREIGN,
  },
  {
    step: 'it is looked whether the words that the journal changes are where they were',
    file: 'drivers/qcow2/foreign-use.js',
    find: 'strayWord(search) ??',
    replace: '',
    tests: FOREIGN,
  },
  {
    step: 'it is looked whether what the journal has unmapped is counted still',
    file: 'drivers/qcow2/foreign-use.js',
    find: 'await findMiscounted(walk, state, left)',
    replace: 'null',
    tests: FOREIGN,
  },
  {
    step: 'it is looked who names what the journal has given back, too',
    file: 'drivers/qcow2/foreign-use.js',
    find: 'old === 0 || now === 0',
    replace: 'old === 0 && now !== 0 && changes.at(-1)?.now !== 0',
    tests: JOURNAL,
  },
  {
    step: 'a journal is continued only under the lock under which it was left',
    file: 'src/block/restart-journal-file.js',
    find: 'if (!isSame(TENURE_AT, MARK_AT))',
    replace: 'if (false)',
    tests: ['test/unit/block/restart-journal-file.test.js', ...JOURNAL],
  },
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
    step: 'what the journal has not taken is on disk only when it has forgotten all that came before',
    file: 'src/block/journaled-changes.js',
    find: 'if (journal === null || journal.pendingBytes === 0 || this.#untold.length === 0)',
    replace: 'if (true)',
    tests: FILLING_JOURNAL,
  },
  {
    step: 'a refcount that the journal has not taken is left out of the checkpoint of what it has',
    file: 'drivers/qcow2/covered.js',
    find: "if (change.kind === 'refcount')",
    replace: 'if (false)',
    tests: FILLING_JOURNAL,
  },
  {
    step: 'what a checkpoint has left out stays dirty',
    file: 'drivers/qcow2/covered.js',
    find: 'changes: NO_CHANGES',
    replace: 'changes: copy.changes',
    tests: FILLING_JOURNAL,
  },
  {
    step: 'what was unmapped before a checkpoint that leaves out something is given back after the next one',
    file: 'drivers/qcow2/checkpoint.js',
    find: 'state.unmapped = [...told.unmapped, ...state.unmapped];',
    replace: '',
    tests: FILLING_JOURNAL,
  },
  {
    step: 'a journal that does not fit the image is forgotten',
    file: 'drivers/qcow2/journal-mark.js',
    find: `    journal?.begin();
    journal?.end();`,
    replace: '',
    tests: JOURNAL,
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
    file: 'drivers/qcow2/open.js',
    find: 'if (await replayJournal(state))',
    replace: 'if (false)',
    tests: SIGKILL,
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
    find: 'this.#covered.length > 0 || this.#isLeftOut',
    replace: 'this.#isLeftOut',
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
    file: 'drivers/qcow2/read.js',
    find: "const isKept = m.kind === 'data' && m.inPlace && this.#state.journaled.isBehind;",
    replace: 'const isKept = false;',
    tests: FULL_JOURNAL,
  },
  {
    step: 'a write at once waits for what the journal has not taken of its cluster',
    file: 'drivers/qcow2/write-at-once.js',
    find: 'if (!this.works || state.journaled.isBehind)',
    replace: 'if (!this.works)',
    tests: FULL_JOURNAL,
  },
];
