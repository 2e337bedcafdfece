package main

import (
	"io"
	"os"

	"golang.org/x/term"
)

// stdio holds the three streams of a command.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// streamBuffer is the length of one read of a stream of the tree, in bytes: the longest.
const streamBuffer = 128 << 10

// terminal returns the file behind a stream if it is a terminal.
func terminal(stream any) (*os.File, bool) {
	file, ok := stream.(*os.File)
	return file, ok && term.IsTerminal(int(file.Fd()))
}

// terminalError returns the failure of a terminal that cannot be measured or changed.
func terminalError(err error) error {
	return failf(exitFailed, "cannot use this terminal: %w", err)
}

// plainReader and plainWriter hide files. On files io.Copy uses splice or copy_file_range, which go
// by sizes and the page cache and end at the old end of a growing file.
type (
	plainReader struct{ io.Reader }
	plainWriter struct{ io.Writer }
)

// transfer copies in to out, up to buffer bytes with each read.
func transfer(out io.Writer, in io.Reader, buffer int64) error {
	_, err := io.CopyBuffer(plainWriter{out}, plainReader{in}, make([]byte, buffer))
	return err
}
