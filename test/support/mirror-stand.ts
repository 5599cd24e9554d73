/** A view over an image, and mirrors of it to another one, without a mount: delays and faults at will. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { silentLog } from '../../src/base/log.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import type { Graph } from '../../src/block/graph.ts';
import type { Node } from '../../src/block/node.ts';
import { View } from '../../src/block/view.ts';
import type { Job } from '../../src/job/job.ts';
import type { JobEventName } from '../../src/job/job-info.ts';
import { JobList } from '../../src/job/job-list.ts';
import { Mirror } from '../../src/job/mirror.ts';
import { defaultGranularity, type MirrorOptions } from '../../src/job/mirror-options.ts';
import { qemuImg } from './qemu-img.ts';
import { testGraph } from './test-graph.ts';

const PATIENCE_MS = 10_000;

export interface MirrorStandOptions {
  readonly directory: string;
  readonly sourceFormat: string;
  readonly targetFormat: string;
  readonly lengthBytes: number;
  /** Takes the place of the `file` protocol. */
  readonly file?: DriverDescriptor;
  /** Already there. */
  readonly keepsFiles?: boolean;
}

export interface RecordedEvent {
  readonly name: JobEventName;
  readonly data: Readonly<Record<string, unknown>>;
}

export class MirrorStand {
  readonly source: string;
  readonly target: string;
  readonly graph: Graph;
  readonly view: View;
  readonly events: RecordedEvent[] = [];
  readonly #jobs = new JobList(silentLog);
  readonly #options: MirrorStandOptions;
  /** Of the last mirror, while it is open. */
  targetNode: Node | null = null;
  work: Mirror | null = null;
  /** What the last one has left is closed. */
  released: Promise<void> = Promise.resolve();

  private constructor(graph: Graph, options: MirrorStandOptions) {
    this.#options = options;
    this.graph = graph;
    this.source = join(options.directory, `source.${options.sourceFormat}`);
    this.target = join(options.directory, `target.${options.targetFormat}`);
    this.view = new View({
      name: 'disk.raw',
      readOnlyReason: null,
      allowShrink: true,
      log: silentLog,
      open: () => graph.open({ path: this.source, format: options.sourceFormat, readOnly: false }),
      close: (root) => graph.close(root),
    });
    this.#jobs.listen((name, data) => this.events.push({ name, data }));
  }

  /** Source and target are made, empty; the view is open. */
  static async open(options: MirrorStandOptions): Promise<MirrorStand> {
    const { directory, file, lengthBytes } = options;
    await mkdir(directory, { recursive: true });
    const graph = await testGraph(file === undefined ? { directory } : { directory, file });
    const stand = new MirrorStand(graph, options);
    if (options.keepsFiles !== true) {
      const size = String(lengthBytes);
      await qemuImg(['create', '-q', '-f', options.sourceFormat, stand.source, size]);
      await qemuImg(['create', '-q', '-f', options.targetFormat, stand.target, size]);
    }
    await stand.view.open();
    return stand;
  }

  get root(): Node {
    const { root } = this.view;
    if (root === null) throw new Error('the view is open');
    return root;
  }

  async mirror(
    given: Partial<MirrorOptions> & {
      readonly speed?: number;
      readonly autoFinalize?: boolean;
      readonly targetWithoutBacking?: boolean;
    } = {},
  ): Promise<Job> {
    const { view, graph, root } = this;
    const target = await graph.open({
      path: this.target,
      format: this.#options.targetFormat,
      readOnly: false,
      asTarget: true,
      withoutBacking: given.targetWithoutBacking === true,
    });
    this.targetNode = target;
    let old: Node | null = null;
    const work = new Mirror({
      view,
      root,
      target,
      sync: 'full',
      bitmap: null,
      bitmapMode: 'on-success',
      granularityBytes: defaultGranularity(target),
      bufferBytes: 16 << 20,
      copyMode: 'background',
      onSourceError: 'report',
      onTargetError: 'report',
      unmap: true,
      targetIsZero: true,
      ...given,
      pivot: async () => {
        await given.pivot?.();
        old = view.swapRoot(target);
        graph.share(target);
      },
      ended: async ({ abandoned }) => {
        this.targetNode = null;
        const closing = graph.close(old ?? target);
        this.released = closing.catch(() => undefined);
        if (!abandoned) await closing;
      },
    });
    this.work = work;
    const { speed = 0, autoFinalize = true } = given;
    return this.#jobs.start({
      id: 'disk',
      type: 'mirror',
      speed,
      autoFinalize,
      autoDismiss: false,
      nodes: [root],
      work,
    });
  }

  /** After a test that failed: nothing goes on that would keep its process from ending. */
  abandon(): void {
    for (const job of this.#jobs.all) {
      if (job.status !== 'concluded' && job.status !== 'aborting') job.cancel({ force: true });
    }
  }

  /** Resolves when the job is ready, or has ended. Throws after 10 s. */
  async readyOrEnded(job: Job): Promise<void> {
    for (const end = Date.now() + PATIENCE_MS; ; ) {
      if (['ready', 'standby', 'concluded'].includes(job.status)) return;
      if (Date.now() > end) throw new Error(`it is neither ready nor over, but ${job.status}`);
      await sleep(2);
    }
  }

  names(): readonly string[] {
    return this.events.map(({ name, data }) =>
      name === 'JOB_STATUS_CHANGE' ? String(data['status']) : name,
    );
  }
}
