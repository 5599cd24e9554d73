#!/usr/bin/env node
/** The command `vdiskfs`: yargs wiring. */
process.stderr.write('vdiskfs: no command is wired yet\n');
process.exitCode = 2;
