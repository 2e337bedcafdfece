// Package audit keeps a line for each command that changed something or was refused: when, by whom,
// on what, and with which result. The lines are in one private file. It lasts over the daemon's
// death, and is synced within seconds.
//
// Users make the lines, and so the package limits what a user can do with them:
//
//   - Every word is escaped, so that nobody forges a column or a line.
//   - The file has at most 4 MiB. When it is full, each user keeps her newest lines up to an equal
//     share, so that a user's flood removes only her own.
//   - Refusals and steps of streams that exceed a user's rate are counted and not written. Changes
//     are never left out: a user who makes them faster than the rate is slowed down.
//   - A disk that is full or does not answer holds up no command. The lines that it has no room for
//     are counted.
//
// One goroutine writes, another syncs. Only the line of a change that the same disk has just made
// durable is written by its caller, if nothing else waits.
package audit
