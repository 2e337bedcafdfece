// Package host holds what several packages need of Linux: files, processes, threads, copies. It is
// a leaf: it imports nothing of banger, keeps nothing open and leaves no goroutine behind.
package host
