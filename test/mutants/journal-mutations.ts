/** The restart journal: what a process that is killed has answered is there for the next one. */
import type { Mutation } from './mutations.ts';

const FULL_JOURNAL = ['test/crash/sigkill-full-journal.test.js'];
const FILLING_JOURNAL = ['test/crash/sigkill-filling-journal.test.js'];
const SIGKILL = ['test/crash/sigkill.test.js'];
const JOURNAL = ['test/crash/sigkill-journal.test.js'];

export const JOURNAL_MUTATIONS: readonly Mutation[] = [
  {
    step: 'of an image that was not locked all the time, it is looked who names what the journal has taken',
    file: 'drivers/qcow2/replay.js',
    find: 'if (state.request.journal?.isContinued !== false)',
    replace: 'if (true)',
    tests: JOURNAL,
  },
  {
    step: 'it is looked who names what the journal has given back, too',
    file: 'drivers/qcow2/replay.js',
    find: 'old === 0 || now === 0',
    replace: 'old === 0 && now !== 0 && changes.at(-1)?.now !== 0',
    tests: JOURNAL,
  },
  {
    step: 'a journal is continued only under the lock under which it was left',
    file: 'src/block/restart-journal-file.js',
    find: 'if (Buffer.compare(found, ours) !== 0)',
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
    file: 'drivers/qcow2/replay.js',
    find: `        journal?.begin();
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
