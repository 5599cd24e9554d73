/** What the commands of the control socket work on: given by the engine, so that this room knows no mount. */
import type { DirtyBitmap } from '../block/dirty-bitmap.ts';
import type { TrackedBitmap } from '../block/dirty-tracking.ts';
import type { OwnLayers } from '../block/graph.ts';
import type { Node } from '../block/node.ts';
import type { View } from '../block/view.ts';
import type { BitmapFile } from '../job/bitmap-file.ts';
import { JobError } from '../job/job-error.ts';
import type { JobList } from '../job/job-list.ts';
import type { JobStore } from '../job/job-store.ts';
import type { Targets } from './targets.ts';

/** A view of the mount, as QMP speaks of it. */
export interface Device {
  /** The view's file name without `.raw`. */
  readonly name: string;
  /** Of the image file, resolved; another one after a pivot. */
  readonly path: string;
  /** The file that the view was made for. */
  readonly originalPath: string;
  readonly view: View;
}

/** QEMU's SnapshotInfo; what it has beside is passed on as it is. */
export interface SnapshotInfo {
  readonly id: string;
  readonly name: string;
}

/** Internal snapshots of a device. Errors: BlockError of the view and the image; EBUSY while somebody uses what changes. */
export interface DeviceSnapshots {
  list(): readonly SnapshotInfo[];
  create(name: string): Promise<SnapshotInfo>;
  /** `force`: also when somebody may have the view open for writing. */
  apply(idOrName: string, options: { readonly force: boolean }): Promise<SnapshotInfo>;
  remove(id: string): Promise<SnapshotInfo>;
}

/** Which host uses a device's image. Errors: BlockError of the view and the image; EBUSY while somebody uses it; JobError. */
export interface DeviceActivity {
  /** Another host may use it afterwards. `force`: also when somebody may have the view open for writing. */
  deactivate(device: Device, options: { readonly force: boolean }): Promise<void>;
  activate(device: Device): Promise<void>;
}

/** A job whose bitmap may outlive this engine; paths of its images. */
export interface KeptJob {
  readonly id: string;
  readonly source: string;
  readonly target: string;
}

/** Bitmaps of jobs beside the engine's memory: with them a job goes on where it was when its engine died. */
export interface KeptBitmaps {
  /**
   * What an earlier engine has left for the job that goes on; null when there is none. Nobody else gets it: what was left on the
   * image for another job is given up.
   */
  take(root: Node, job: KeptJob): TrackedBitmap | null;
  /** Keeps a bitmap from now on, with what it has; in one turn of the event loop. Null where that cannot be done. */
  create(job: KeptJob, content: DirtyBitmap): BitmapFile | null;
  /** A job of an image does not go on in this engine, and would miss what is written until it does. */
  giveUp(imagePath: string): void;
  /** All jobs that go on in this engine have taken theirs. */
  giveUpRest(): void;
}

export interface ControlContext {
  readonly jobs: JobList;
  /** Where jobs are kept for later engines. */
  readonly store: JobStore;
  /** Every open format node. */
  nodes(): readonly Node[];
  devices(): Promise<readonly Device[]>;
  /** See `Graph.replaceBacking`. */
  replaceBacking(overlay: Node, base: Node | null): Promise<void>;
  readonly targets: Targets;
  readonly keptBitmaps: KeptBitmaps;
  /**
   * The view goes on over a target, in a drained section, with both sides flushed and the same content. Durable. Returns the
   * old root, null when it is closed. `reopens`: the target's backing was not opened, because it is the old root itself. Errors: the view stays what it is.
   */
  pivot(device: Device, target: Node, options: { readonly reopens: boolean }): Promise<Node | null>;
  /** After `pivot`, outside of the drained section, with what it has returned. Never throws. */
  pivoted(device: Device, old: Node | null): Promise<void>;
  /**
   * Layers below a device's image are changed: they have no views until the returned function is called. Errors: EBUSY, naming
   * who uses one, or is made of one (unless `force`).
   */
  claimLayers(
    device: Device,
    paths: readonly string[],
    options: { readonly force: boolean; readonly jobId: string },
  ): Promise<() => Promise<void>>;
  /** See `Catalog.reopen`. */
  reopen(device: Device, ownLayers: OwnLayers | null): Promise<Node>;
  /** Errors: EBUSY while the kernel writes the view without asking us. */
  refusePassthrough(device: Device): void;
  /** The backing chain of a device is another one now: what the mount shows is looked at again. */
  chainChanged(device: Device): Promise<void>;
  /** `__vdiskfs_status`. */
  status(): Promise<object>;
  /** Changes the size of a view through the kernel, which believes no other. Errors: EPERM, EROFS, ENOSPC. */
  setSize(device: Device, lengthBytes: number): Promise<void>;
  snapshots(device: Device): DeviceSnapshots;
  readonly activity: DeviceActivity;
  /** What the kernel holds of the view is in the image when it resolves; `op` is what that is for. Errors: EIO. */
  syncDevice(device: Device, op: string): Promise<void>;
  /** `image` of QEMU's BlockDeviceInfo: what `qemu-img info` says of the node's file. */
  imageInfo(node: Node): Promise<object>;
  /** Unmounts, after the answer is out. */
  quit(): void;
}

/** Errors: JobError of class DeviceNotFound. */
export const deviceNamed = async (context: ControlContext, name: string): Promise<Device> => {
  const devices = await context.devices();
  const device =
    devices.find((d) => d.name === name) ??
    devices.find((d) => d.view.name === name) ??
    devices.find((d) => d.view.root?.name === name);
  if (device !== undefined) return device;
  throw new JobError(`Cannot find device='${name}' nor node-name='${name}'`, 'DeviceNotFound');
};

/** Errors: JobError when a view goes on over another image than it did when a command began; another command came first. */
export const refuseChanged = (view: View, root: Node): void => {
  if (view.root === root) return;
  throw new JobError(`The chain of '${view.name}' has changed meanwhile`);
};

/** The nodes below a root, top first. */
export const layersOf = (root: Node): readonly Node[] => chainOf(root).slice(1);

/** The nodes of a chain, top first. */
export const chainOf = (root: Node): readonly Node[] => {
  const chain: Node[] = [];
  for (let node: Node | null = root; node !== null; node = node.backing) chain.push(node);
  return chain;
};
