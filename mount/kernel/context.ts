/** What request handlers share. */
import { BlockError } from '../../src/base/block-error.ts';
import type { Log } from '../../src/base/log.ts';
import type { Directory, Entry } from '../directory.ts';
import type { NodeTranslations } from './node-translations.ts';
import type { OpenHandles } from './open-handles.ts';
import type { Passthrough } from './passthrough.ts';
import type { FuseRequest } from './request.ts';

export interface HandlerContext {
  readonly directory: Directory;
  readonly handles: OpenHandles;
  /** Null where it was not asked for, or the kernel has none. */
  readonly passthrough: Passthrough | null;
  /** Null when the table is switched off. */
  readonly translations: NodeTranslations | null;
  readonly log: Log;
  readonly readOnly: boolean;
  /** Bytes that one reply may carry. */
  readonly maxTransferBytes: number;
  /** Gives the request's slot back: it will be held for long. */
  readonly release: (request: FuseRequest) => void;
  /** The kernel has been told of a node once more; see FORGET. */
  readonly remembered: (nodeId: number) => void;
  /** Resolves after a time, or at once when the session ends. False: it ends. */
  readonly pause: (ms: number) => Promise<boolean>;
  /** Writes held for lack of space, by node: a view's state in `status`. */
  readonly starved: Map<number, number>;
}

/** Answers one request: resolves to the length of the reply's body, which lies at REPLY_BODY_AT. Errors: BlockError. */
export type Handler = (request: FuseRequest, context: HandlerContext) => Promise<number> | number;

/** Tells a view of the handles that an earlier engine has left open. */
export const noticePassthrough = ({ view, nodeId }: Entry, context: HandlerContext): void => {
  if (context.passthrough?.isUsed(nodeId) === true) view.isWrittenBeside = true;
};

/** The view of a request. Errors: ESTALE for a node id that stands for nothing any more. */
export const entryOf = (
  request: FuseRequest,
  context: HandlerContext,
  nodeId = request.nodeId,
): Entry => {
  const entry = context.directory.byNodeId(nodeId);
  if (entry !== null) {
    noticePassthrough(entry, context);
    return entry;
  }
  throw new BlockError({ kind: 'not-found', errno: 'ESTALE', message: `node ${nodeId} is gone` });
};
