// Package host holds what several packages need of Linux: files, processes, copies. It is a leaf: it
// imports nothing of banger, starts no goroutine and keeps nothing open.
package host
