package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// archiveChunk is the length of one read or write of an archive.
const archiveChunk = 128 << 10

func (c *client) exportCmd() *cobra.Command {
	return &cobra.Command{
		Use: "export NAME FILE", Short: "Write a stopped VM to one file; - is standard output", Args: cobra.ExactArgs(2), ValidArgsFunction: c.complete(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := c.tree().vm(args[0])
			if err != nil {
				return err
			}
			in, err := open(filepath.Join(dir, "wait", "export"), os.O_RDONLY)
			if err != nil {
				return explain("cannot export "+args[0], filepath.Join(dir, "error"), err)
			}
			defer in.Close()
			if args[1] == "-" {
				_, err := io.CopyBuffer(plainWriter{c.std.out}, plainReader{in}, make([]byte, archiveChunk))
				return explain("cannot export "+args[0], "", err)
			}
			// Whole or not at all under its name.
			out, err := os.CreateTemp(filepath.Dir(args[1]), ".banger-export-")
			if err != nil {
				return &failure{exitFailed, err}
			}
			_, err = io.CopyBuffer(plainWriter{out}, plainReader{in}, make([]byte, archiveChunk))
			if err = errors.Join(err, out.Sync(), out.Close()); err == nil {
				err = os.Rename(out.Name(), args[1])
			}
			if err != nil {
				return &failure{exitFailed, errors.Join(fmt.Errorf("cannot export %s to %s: %w", args[0], args[1], err), os.Remove(out.Name()))}
			}
			return nil
		},
	}
}

func (c *client) importCmd() *cobra.Command {
	return &cobra.Command{
		Use: "import FILE [NAME]", Short: "Make a VM of a file that `banger export` wrote; - is standard input", Args: cobra.RangeArgs(1, 2),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := c.tree().check(); err != nil {
				return err
			}
			var in io.Reader = c.std.in
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return &failure{exitFailed, err}
				}
				defer f.Close()
				in = f
			}
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			const doing = "cannot import"
			out, err := open(c.tree().top("wait/import"), os.O_WRONLY)
			if err != nil {
				return explain(doing, "", err)
			}
			defer out.Close()
			if _, err = fmt.Fprintln(out, name); err == nil {
				_, err = io.CopyBuffer(plainWriter{out}, plainReader{in}, make([]byte, archiveChunk))
			}
			if err != nil {
				return explain(doing, c.tree().top("error"), err)
			}
			return nil
		},
	}
}
