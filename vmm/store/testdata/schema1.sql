CREATE TABLE vms (
	serial        INTEGER PRIMARY KEY AUTOINCREMENT,
	id            TEXT NOT NULL,
	name          TEXT NOT NULL UNIQUE,
	mac           TEXT NOT NULL UNIQUE,
	image         TEXT NOT NULL,
	cpus          INTEGER NOT NULL,
	memory        INTEGER NOT NULL,
	disk          INTEGER NOT NULL,
	cmdline       TEXT NOT NULL,
	vmm           TEXT NOT NULL,
	net           TEXT NOT NULL,
	autostart     INTEGER NOT NULL,
	idle_timeout  INTEGER NOT NULL, -- nanoseconds, -1 for none
	stop_timeout  INTEGER NOT NULL, -- nanoseconds
	protected     INTEGER NOT NULL,
	uid           INTEGER NOT NULL,
	gid           INTEGER NOT NULL,
	mode          INTEGER NOT NULL,
	created       INTEGER NOT NULL, -- nanoseconds since 1970, 0 for never
	started       INTEGER NOT NULL,
	touched       INTEGER NOT NULL,
	state         TEXT NOT NULL,
	error         TEXT NOT NULL,
	boot_id       TEXT NOT NULL,
	pid           INTEGER NOT NULL,
	pid_start     INTEGER NOT NULL, -- clock ticks after boot
	run           INTEGER NOT NULL
) STRICT;
INSERT INTO vms VALUES (41, 'a-b-c', 'old', '02:00:00:00:00:01', 'builtin', 1, 134217728, 0, '', 'qemu', 'bridge', 0, -1, 10000000000, 0,
  1000, 1000, 493, 1700000000000000000, 0, 1700000000000000000, 'stopped', '', '', 0, 0, 0);
PRAGMA user_version = 1;
