package store

import (
	"context"
	"database/sql"
	"fmt"
)

// migrations are the steps from an empty database to today's. Step N, from 0, leads to user_version
// N+1. A released step is never edited: a change of the schema is a new step.
var migrations = []string{
	`CREATE TABLE vms (
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
	) STRICT`,
	`CREATE TABLE leases (
		serial   INTEGER PRIMARY KEY REFERENCES vms (serial) ON DELETE CASCADE,
		address  BLOB NOT NULL UNIQUE -- network byte order, so that they sort
	) STRICT`,
	`ALTER TABLE vms ADD COLUMN isolate INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE vms ADD COLUMN expose_fs INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE vms ADD COLUMN publish TEXT NOT NULL DEFAULT '';
	ALTER TABLE vms ADD COLUMN authorized_keys TEXT NOT NULL DEFAULT ''`,
	`ALTER TABLE vms ADD COLUMN base TEXT NOT NULL DEFAULT '';
	ALTER TABLE vms ADD COLUMN snapshots_made INTEGER NOT NULL DEFAULT 0; -- ever
	CREATE TABLE snapshots (
		id       INTEGER PRIMARY KEY,
		serial   INTEGER NOT NULL REFERENCES vms (serial) ON DELETE CASCADE,
		number   INTEGER NOT NULL, -- 1 to 65535
		name     TEXT NOT NULL,
		created  INTEGER NOT NULL, -- nanoseconds since 1970
		state    TEXT NOT NULL,
		size     INTEGER NOT NULL,
		frozen   INTEGER NOT NULL,
		phase    TEXT NOT NULL,
		UNIQUE (serial, number),
		UNIQUE (serial, name)
	) STRICT`,
	`ALTER TABLE vms ADD COLUMN stop_by INTEGER NOT NULL DEFAULT 0`,
	`CREATE TABLE quotas (
		uid    INTEGER NOT NULL, -- -1 for those without a rule of their own
		quota  TEXT NOT NULL,    -- vms, cpus, memory or disk
		most   INTEGER NOT NULL, -- 2^63-1 for no limit
		PRIMARY KEY (uid, quota)
	) STRICT`,
	`ALTER TABLE vms ADD COLUMN memory_target INTEGER NOT NULL DEFAULT 0; -- bytes, 0 for all
	ALTER TABLE vms ADD COLUMN cpu_max TEXT NOT NULL DEFAULT 'max';
	ALTER TABLE vms ADD COLUMN cpu_weight INTEGER NOT NULL DEFAULT 0; -- 0 for the usual 100
	ALTER TABLE vms ADD COLUMN memory_max INTEGER NOT NULL DEFAULT 0; -- bytes, 0 for no limit
	ALTER TABLE vms ADD COLUMN pids_max INTEGER NOT NULL DEFAULT 0; -- 0 for no limit
	ALTER TABLE vms ADD COLUMN io_max TEXT NOT NULL DEFAULT 'rbps=max';
	ALTER TABLE vms ADD COLUMN net_max TEXT NOT NULL DEFAULT 'rx=max'`,
	`ALTER TABLE vms ADD COLUMN rebooting INTEGER NOT NULL DEFAULT 0`,
	`ALTER TABLE vms ADD COLUMN held INTEGER NOT NULL DEFAULT 0`,
}

// migrate applies the steps that the database lacks, each in a transaction with its user_version.
func migrate(ctx context.Context, conn *sql.Conn, steps []string) error {
	var version int
	if err := conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version > len(steps) {
		return fmt.Errorf("it was written by a newer banger (schema %d, this one knows up to %d); "+
			"run that one", version, len(steps))
	}
	for ; version < len(steps); version++ {
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err = tx.ExecContext(ctx, steps[version]); err == nil {
			_, err = tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version+1))
		}
		if err != nil {
			_ = tx.Rollback()
			return fmt.Errorf("schema step %d: %w", version+1, err)
		}
		if err := tx.Commit(); err != nil {
			return fmt.Errorf("schema step %d: %w", version+1, err)
		}
	}
	return nil
}
