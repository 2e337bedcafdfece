package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"banger/internal/host"
)

func (c *client) exportCmd() *cobra.Command {
	return &cobra.Command{
		Use: "export NAME FILE", Short: "Write a stopped VM to one file; - is standard output",
		Args: cobra.ExactArgs(2), ValidArgsFunction: c.completeVMs(1),
		RunE: c.onVM(func(v vm, args []string) error {
			in, err := open(v.file("wait/export"), os.O_RDONLY)
			if err != nil {
				return v.explain("cannot export "+v.name, err)
			}
			defer in.Close()
			if args[0] == "-" {
				return explain("cannot export "+v.name, "", transfer(c.std.out, in, streamBuffer))
			}
			err = host.ReplaceFile(args[0], 0o600, func(f *os.File) error {
				return transfer(f, in, streamBuffer)
			})
			if err != nil {
				return failf(exitFailed, "cannot export %s to %s: %w", v.name, args[0], err)
			}
			return nil
		}),
	}
}

func (c *client) importCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE [NAME]",
		Short: "Make a VM of a file that `banger export` wrote; - is standard input",
		Args:  cobra.RangeArgs(1, 2),
		RunE: c.onTree(func(args []string) error {
			in := c.std.in
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return &failure{exitFailed, err}
				}
				defer f.Close()
				in = f
			}
			out, err := open(c.tree.file("wait/import"), os.O_WRONLY)
			if err != nil {
				return explain("cannot import", "", err)
			}
			defer out.Close()
			name := append(args[1:], "")[0]
			if _, err = fmt.Fprintln(out, name); err == nil {
				err = transfer(out, in, streamBuffer)
			}
			return explain("cannot import", c.tree.file("error"), err)
		}),
	}
}
