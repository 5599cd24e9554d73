/** Making images: what a driver can be told, and what it makes of it. */
import type { BackingLink, DataFileLink } from './image-description.ts';
import type { Node } from './node.ts';
import type { Secret } from './secrets.ts';

export interface CreateOption {
  /** As `qemu-img create -o` names it. */
  readonly name: string;
  readonly type: 'size' | 'number' | 'string' | 'boolean' | 'choice';
  readonly choices?: readonly string[];
  readonly help: string;
  /** No image can be made without. */
  readonly isNeeded?: boolean;
}

/** What is to be made. */
export interface CreatePlan {
  readonly path: string;
  readonly virtualSizeBytes: number;
  readonly backing: BackingLink | null;
  /** Already checked against `createOptions`: names known, sizes as decimal bytes. */
  readonly options: ReadonlyMap<string, string>;
}

export interface CreateRequest extends CreatePlan {
  /** What the option `encrypt.key-secret` names; null for none. */
  readonly secret: Secret | null;
  /** An empty, writable protocol node. */
  readonly file: Node;
  /** What `DriverDescriptor.createDataFile` asked for, open for writing; else null. */
  readonly dataFile: Node | null;
}

/** A data file that the options of a new image name. */
export interface DataFilePlan {
  readonly link: DataFileLink;
  /** It is made, empty, when it is not there; else it must be there. */
  readonly isMade: boolean;
  /** One that is there already must have no bytes: they would be lost. */
  readonly isEmpty?: boolean;
}
