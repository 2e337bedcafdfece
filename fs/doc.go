// Package fs is the mount: the tree of files in which VMs are seen and worked.
//
// Every file is a row of a table (table.go): name, mode, show, store. The raw
// bridge (raw.go) turns a request of the kernel into a row and, where the row
// is below vms/NAME, a VM. Node numbers are computed from both (nodeid.go). Only
// nodes of files that can be written or watched are kept (nodes.go), and those
// of guests' files (guestnodes.go), until the kernel forgets them.
//
// A read: open(2) runs the row's show and keeps the bytes, which read(2) returns
// until one begins at offset 0 again: that one runs show anew. A write: write(2)
// runs the row's store, whose error becomes the errno (errno.go) and the sentence
// in the `error` of the VM, of the image or of the top.
//
// Beside go-fuse's goroutines two last as long as the mount: one touches files for
// inotify watchers (nudge.go), one finds out what is watched (held.go). Others last
// as long as their work: a guest's file session (guestsession.go), an import
// (archive.go), a change that waits for a disk, a reader who blocks. The package
// never reads its own mount.
package fs
