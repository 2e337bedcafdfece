// Command banger works banger's virtual machines from a shell. It is a thin client of the files that bangerd serves (banger(5)):
// it reads and writes them and does nothing that cat, echo, mkdir and rmdir could not do.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"banger/internal/printable"
)

func main() {
	os.Exit(run(os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr}))
}

// stdio is where a command reads and writes.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// run executes the command line and gives the exit code.
func run(args []string, std stdio) int {
	root := newRoot(std)
	root.SetArgs(args)
	root.SetIn(std.in)
	root.SetOut(std.out)
	root.SetErr(std.err)
	err := root.Execute()
	var ended commandEnded
	if errors.As(err, &ended) {
		return int(ended)
	}
	if err != nil {
		fmt.Fprintln(std.err, "banger:", printable.Message(err.Error()))
	}
	return exitCode(err)
}

// terminal gives the file behind f if it is a terminal.
func terminal(f any) (*os.File, bool) {
	file, ok := f.(*os.File)
	return file, ok && term.IsTerminal(int(file.Fd()))
}
