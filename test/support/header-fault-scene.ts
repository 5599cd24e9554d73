/** An image with a restart journal, opened above a file in which a change of its header fails; and the engine that comes after a kill. */
import { silentLog } from '../../src/base/log.ts';
import type { Graph } from '../../src/block/graph.ts';
import type { Node } from '../../src/block/node.ts';
import type { RestartJournal } from '../../src/block/restart-journal.ts';
import { HeaderFault, type HeaderFaultOptions } from './header-fault.ts';
import type { JournaledImage } from './journaled-image.ts';
import { testGraph } from './test-graph.ts';

export interface HeaderFaultScene {
  readonly directory: string;
  readonly path: string;
  readonly fault: HeaderFault;
  readonly graph: Graph;
  readonly node: Node;
  readonly errors: string[];
  /** Another engine's, after this one was killed. */
  readonly takeOver: () => Promise<{ readonly graph: Graph; readonly node: Node }>;
}

export const openUnderFault = async (
  { directory, path, journals }: JournaledImage,
  options: Omit<HeaderFaultOptions, 'path'> & {
    readonly format: string;
    readonly journal?: (made: RestartJournal) => RestartJournal;
  },
): Promise<HeaderFaultScene> => {
  const { format, headerBytes, first, journal = (made) => made } = options;
  const fault = new HeaderFault({ path, headerBytes, first });
  const errors: string[] = [];
  const log = { ...silentLog, error: (_: string, text: string) => errors.push(text) };
  const how = { directory, journalDirectory: journals, log };
  const graph = await testGraph({ ...how, journal, file: fault.file });
  const node = await graph.open({ path, format, readOnly: false });
  const takeOver = async () => {
    const next = await testGraph(how);
    return { graph: next, node: await next.open({ path, format, readOnly: false }) };
  };
  return { directory, path, fault, graph, node, errors, takeOver };
};
