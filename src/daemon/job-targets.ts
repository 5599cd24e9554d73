/**
 * The images that jobs copy to. A target has no view while it is one, nobody else may open its file, and its node is closed
 * when the job ends, unless `blockdev-add` has made it or a view goes on over it.
 */
import { stat, unlink } from 'node:fs/promises';
import { basename, dirname, isAbsolute, join } from 'node:path';
import type { Catalog } from '../../mount/catalog.ts';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { endsWithin, GIVE_UP_MS } from '../base/bounded-wait.ts';
import type { Log } from '../base/log.ts';
import type { Graph } from '../block/graph.ts';
import type { ImageLocks } from '../block/image-locks.ts';
import type { Node } from '../block/node.ts';
import { realPathOutside } from '../block/real-path.ts';
import type { DriverRegistry } from '../block/registry.ts';
import { canonicalUrl, isUrl } from '../block/remote-url.ts';
import type { Secrets } from '../block/secrets.ts';
import type { AddedNode, JobTarget, TargetRequest, Targets } from '../control/targets.ts';
import { createImage } from '../image/create.ts';
import { JobError } from '../job/job-error.ts';

const NO_ANSWER = `does not answer for ${GIVE_UP_MS / 1000} s`;

export interface JobTargetsOptions {
  readonly graph: Graph;
  readonly catalog: Catalog;
  readonly registry: DriverRegistry;
  readonly locks: ImageLocks;
  readonly secrets: Secrets;
  readonly log: Log;
  readonly backingDirectories: readonly string[];
  /** Its real path: never touched from here. */
  readonly mountpoint: string;
}

interface Opened {
  readonly node: Node;
  readonly path: string;
  readonly isNew: boolean;
  /** There was no such file before. */
  readonly isMade: boolean;
  readonly endReservation: () => Promise<void>;
}

interface Added {
  readonly declared: AddedNode;
  /** Null for a protocol node that a format node is made of. */
  opened: Opened | null;
  /** Id of the job, or name of the node, that uses it. */
  user: string | null;
}

export class JobTargets implements Targets {
  readonly #options: JobTargetsOptions;
  readonly #added = new Map<string, Added>();
  /** That have not ended, and of which path; false when they have had their time. */
  readonly #releases = new Map<Promise<boolean>, string>();

  constructor(options: JobTargetsOptions) {
    this.#options = options;
  }

  async open(request: TargetRequest, jobId: string): Promise<JobTarget> {
    const { graph } = this.#options;
    if (request.nodeName !== null) this.#refuseName(request.nodeName);
    const opened = await this.#open(request, `is the target of job '${jobId}'`);
    const { node, path, isNew, isMade, endReservation } = opened;
    return {
      node,
      isNew,
      release: () => this.#release(opened),
      discard: async () => {
        await graph.close(node).catch(() => undefined);
        if (isMade) await unlink(path).catch(() => undefined);
        await endReservation().catch(() => undefined);
      },
      handedOver: endReservation,
    };
  }

  async take(nodeName: string, jobId: string): Promise<JobTarget> {
    const added = this.#present(nodeName);
    if (added.opened === null || added.user !== null) {
      throw new JobError(`Node '${nodeName}' is busy: '${added.user}' uses it`);
    }
    const { node, endReservation } = added.opened;
    added.user = jobId;
    const release = async (): Promise<void> => {
      added.user = null;
    };
    return {
      node,
      isNew: false,
      release,
      discard: release,
      handedOver: async () => {
        this.#added.delete(nodeName);
        await endReservation();
      },
    };
  }

  async add(declared: AddedNode): Promise<void> {
    const { nodeName } = declared;
    this.#refuseName(nodeName);
    // Two clients that ask for one name at once.
    const added: Added = { declared, opened: null, user: nodeName };
    this.#added.set(nodeName, added);
    try {
      added.opened = await this.#openAdded(declared);
      added.user = null;
    } catch (error) {
      this.#added.delete(nodeName);
      throw error;
    }
  }

  async addOver(declared: Omit<AddedNode, 'path'>, protocolNode: string): Promise<void> {
    const below = this.#present(protocolNode);
    const { opened, declared: file } = below;
    if (file.format !== null) throw new JobError(`Node '${protocolNode}' is no protocol node`);
    if (opened === null || below.user !== null) {
      throw new JobError(`Node '${protocolNode}' is busy: '${below.user}' uses it`);
    }
    below.opened = null;
    below.user = declared.nodeName;
    await this.#close(opened);
    try {
      await this.add({ ...declared, path: file.path });
    } catch (error) {
      below.opened = await this.#openAdded(file);
      below.user = null;
      throw error;
    }
  }

  async remove(nodeName: string): Promise<void> {
    const added = this.#present(nodeName);
    if (added.user !== null) {
      throw new JobError(`Node '${nodeName}' is busy: '${added.user}' uses it`);
    }
    this.#added.delete(nodeName);
    if (added.opened !== null) await this.#close(added.opened);
    for (const below of this.#added.values()) {
      if (below.user !== nodeName || below.opened !== null) continue;
      below.opened = await this.#openAdded(below.declared);
      below.user = null;
    }
  }

  /**
   * The mount ends, or its engine: neither stays for a server that does not answer. What a cancelled job has not written there is
   * known to be missing. False: one was left, and what it was asked to write may be written yet. Errors: the first one of a closing.
   */
  async close(): Promise<boolean> {
    const { graph, log } = this.#options;
    const errors: unknown[] = [];
    const ends = new Map(this.#releases);
    for (const { opened } of this.#added.values()) {
      if (opened === null) continue;
      const closed = graph.close(opened.node).catch((error: unknown) => errors.push(error));
      ends.set(endsWithin(closed, GIVE_UP_MS), opened.path);
    }
    this.#added.clear();
    let isLeft = false;
    for (const [end, path] of ends) {
      if (await end) continue;
      isLeft = true;
      log.warning(path, `${NO_ANSWER}: it is left, and may be written yet`);
    }
    if (errors.length > 0) throw errors[0];
    return !isLeft;
  }

  async #openAdded({ nodeName, path, format, mustStandAlone }: AddedNode): Promise<Opened> {
    const request = { path, format: format ?? 'raw', create: null, nodeName };
    const opened = await this.#open(request, `was added as node '${nodeName}'`);
    if (!mustStandAlone || opened.node.backing === null) return opened;
    await this.#close(opened);
    throw new JobError(`Node '${nodeName}' has a backing file, which 'backing' does not say`);
  }

  /** As `#close`; who does not wait for it leaves it to the end of the mount, which counts the time that it has had. */
  #release(opened: Opened): Promise<void> {
    const closing = this.#close(opened);
    const ended = endsWithin(closing, GIVE_UP_MS);
    this.#releases.set(ended, opened.path);
    void closing.catch(() => undefined).finally(() => this.#releases.delete(ended));
    return closing;
  }

  async #close({ node, endReservation }: Opened): Promise<void> {
    try {
      await this.#options.graph.close(node);
    } finally {
      await endReservation();
    }
  }

  async #open(request: TargetRequest, reason: string): Promise<Opened> {
    const { graph, catalog } = this.#options;
    const path = await this.#placeOf(request);
    const endReservation = await catalog.reserve(path, reason);
    let isMade = false;
    try {
      await graph.whenLetGo([path]);
      isMade = await this.#make({ ...request, path });
      const { format, nodeName, withoutBacking = false } = request;
      const named = nodeName === null ? {} : { nodeName };
      const options = { path, format, readOnly: false, asTarget: true, withoutBacking, ...named };
      const node = await graph.open(options);
      return { node, path, isNew: request.create !== null, isMade, endReservation };
    } catch (error) {
      if (isMade) await unlink(path).catch(() => undefined);
      await endReservation();
      throw error;
    }
  }

  /** Whether there was no such file before. */
  async #make({ path, format, create }: TargetRequest): Promise<boolean> {
    if (create === null) return false;
    const { graph, registry, locks, secrets, backingDirectories } = this.#options;
    const isThere = !isUrl(path) && (await exists(path));
    if (isThere) await graph.refuseOpen(path);
    const made = registry.format(format ?? 'raw');
    if (made.createOptions?.some(({ isNeeded }) => isNeeded === true) === true) {
      const how = 'one that was made beforehand can be copied to (--existing)';
      throw new JobError(`Images of format '${made.name}' are not made by a job: ${how}`);
    }
    const request = {
      path,
      format: made.name,
      virtualSizeBytes: create.virtualSizeBytes,
      options: new Map<string, string>(),
      backing: create.backing,
      withoutOpeningBacking: true,
    };
    await createImage(request, { registry, locks, secrets, backingDirectories });
    return !isThere;
  }

  /** The real path, also of a file that is not there yet. */
  async #placeOf({ path, create }: TargetRequest): Promise<string> {
    if (isUrl(path)) return canonicalUrl(path);
    if (!isAbsolute(path)) {
      const message = 'is no absolute path';
      throw new BlockError({ kind: 'bad-request', message, path, op: 'open' });
    }
    const { mountpoint } = this.#options;
    const directory = await realPathOutside(dirname(path), mountpoint);
    try {
      return await realPathOutside(join(directory, basename(path)), mountpoint);
    } catch (error) {
      if (create === null || toBlockError(error).errno !== 'ENOENT') throw error;
      return join(directory, basename(path));
    }
  }

  #present(nodeName: string): Added {
    const added = this.#added.get(nodeName);
    if (added !== undefined) return added;
    throw new JobError(`Failed to find node with node-name='${nodeName}'`);
  }

  #refuseName(name: string): void {
    this.#options.graph.refuseName(name);
    if (!this.#added.has(name)) return;
    throw new JobError(`Duplicate nodes with node-name='${name}'`);
  }
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );
