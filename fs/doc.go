// Package fs is the mount: the tree of files by which users see and control VMs.
//
// Every file is a row of a table (table.go): name, mode, show, store. The functions of a row are in
// the file of its name: `ports` is in ports.go. The bridge (bridge.go) receives the kernel's
// requests and passes them on to the tree (tree.go, attr.go, dirs.go, open.go) or to the guests'
// files (package guestfs). Only these files, mount.go and guests.go know go-fuse.
//
// Node numbers are computed from a serial and a row (nodeid.go). The daemon keeps state only for
// nodes of writable and watchable files (nodes.go), until the kernel forgets them.
//
// open(2) runs the row's show. read(2) returns that capture, until a read from offset 0 runs show
// again. write(2) runs the row's store. An error becomes an errno (errno.go), and its sentence is
// kept in the `error` of the VM, of the image or of the top (error.go).
//
// Beside go-fuse's goroutines two last as long as the mount: one touches files for inotify's
// watchers (nudge.go), one finds open and watched files (followers.go). Others last as long as
// their work: a session with a guest, an import, a change that waits for a disk, a blocked call.
// The package never reads its own mount.
package fs
