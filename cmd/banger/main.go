// Command banger controls virtual machines from a shell. It is a thin client of the files that
// bangerd serves (banger(5)): all that it does can be done with cat, echo, mkdir and rmdir.
package main

import (
	"errors"
	"os"
)

// version is set by the linker.
var version = "unknown"

func main() {
	os.Exit(run(os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr}))
}

// run executes a command line and returns the exit code.
func run(args []string, std stdio) int {
	c := &client{std: std}
	root := c.rootCmd()
	root.SetArgs(args)
	root.SetIn(std.in)
	root.SetOut(std.out)
	root.SetErr(std.err)
	err := withSuggestion(root, root.Execute())
	if ended, ok := errors.AsType[commandEnded](err); ok {
		return int(ended)
	}
	if err != nil {
		c.report(c.tree.locate(err))
	}
	return exitCode(err)
}
