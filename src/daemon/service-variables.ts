/** The variables by which a service manager talks to the process that it has started, and to no other. */

const VARIABLES = [
  'NOTIFY_SOCKET',
  'WATCHDOG_USEC',
  'WATCHDOG_PID',
  'LISTEN_FDS',
  'LISTEN_PID',
  'LISTEN_FDNAMES',
] as const;

/** Takes them out of `env`. */
export const forgetService = (env: NodeJS.ProcessEnv): void => {
  for (const name of VARIABLES) delete env[name];
};

/** An environment for what is started from a service and is not the service. */
export const withoutService = (env: NodeJS.ProcessEnv): NodeJS.ProcessEnv => {
  const copy = { ...env };
  forgetService(copy);
  return copy;
};
