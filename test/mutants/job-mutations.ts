/** What is told of jobs, and what is kept of them: a later engine, or the next boot, knows it too. */
import type { Mutation } from './mutations.ts';

const POWER_CUT = ['test/unit/job/job-store.test.js'];
const STAND_INS = ['test/unit/daemon/stand-in-store.test.js'];

export const JOB_MUTATIONS: readonly Mutation[] = [
  {
    step: 'the result of a job is kept before anybody hears of it',
    file: 'src/job/job.js',
    find: 'await this.kept();',
    replace: '',
    tests: ['test/unit/job/job.test.js'],
  },
  {
    step: 'the result of a job is given to the store before that is waited for',
    file: 'src/job/job.js',
    find: `        this.onChanged();
        await this.kept();`,
    replace: '        await this.kept();',
    tests: ['test/unit/job/job.test.js'],
  },
  {
    step: 'a job whose result is being kept is not cancelled any more',
    file: 'src/job/job.js',
    find: ' && !isBeingKept',
    replace: '',
    tests: ['test/unit/job/job.test.js'],
  },
  {
    step: 'a job that has completed although its mount ends is not left for the next one',
    file: 'src/job/job-list.js',
    find: `            if (hasCompleted(job))
                onDismissed();`,
    replace: '',
    tests: ['test/unit/job/job-list.test.js'],
  },
  {
    step: 'the result of a job that has completed although its engine ends is kept before it is told',
    file: 'src/job/job-list.js',
    find: `            if (hasCompleted(job))
                await kept();`,
    replace: '',
    tests: ['test/unit/job/job-list.test.js'],
  },
  {
    step: 'a small file is on the disk before it takes the place of another',
    file: 'src/base/durable-file.js',
    find: 'await file.sync();',
    replace: '',
    tests: POWER_CUT,
  },
  {
    step: 'a small file that was replaced is in its directory after a power cut',
    file: 'src/base/durable-file.js',
    find: 'await syncDirectory(directory)\n',
    replace: 'await Promise.resolve()\n',
    tests: POWER_CUT,
  },
  {
    step: 'directories that were made for a small file are in theirs after a power cut',
    file: 'src/base/durable-file.js',
    find: '.then(() => syncAbove(directory, first))',
    replace: '',
    tests: ['test/unit/base/durable-file.test.js'],
  },
  {
    step: 'a small file that was removed does not come back after a power cut',
    file: 'src/base/durable-file.js',
    find: 'await syncDirectory(directory).catch((error) => {',
    replace: 'await Promise.resolve().catch((error) => {',
    tests: POWER_CUT,
  },
  {
    step: 'a record of a pivot that was given up is not made when the disk answers',
    file: 'src/daemon/stand-in-store.js',
    find: "if (progress.step === 'given up')",
    replace: 'if (false)',
    tests: STAND_INS,
  },
  {
    step: 'a record of a pivot that was given up, and is made all the same, is taken back',
    file: 'src/daemon/stand-in-store.js',
    find: 'this.#takeBack(original);',
    replace: '',
    tests: STAND_INS,
  },
  {
    step: 'engines take back what was made for a pivot that an earlier one gave up',
    file: 'src/daemon/stand-in-store.js',
    find: 'store.#takeBack(original);',
    replace: '',
    tests: STAND_INS,
  },
  {
    step: 'an engine that comes in a pivot asks the directory what the view stands for',
    file: 'src/daemon/stand-in-store.js',
    find: 'this.#changing > 0 ? null : ',
    replace: '',
    tests: STAND_INS,
  },
];
