// Package host holds functions for Linux that several packages share: files, processes, threads,
// copies. It is a leaf: it imports nothing of banger, keeps nothing open and leaves no goroutine
// behind.
package host
