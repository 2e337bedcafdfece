package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"banger/internal/printable"
)

// client is the state of one invocation.
type client struct {
	std  stdio
	tree tree
}

// runE is a command's function, as cobra calls it.
type runE = func(cmd *cobra.Command, args []string) error

// completion returns the words that a shell offers, as cobra calls it.
type completion = cobra.CompletionFunc

func (c *client) rootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "banger",
		Short: "Control virtual machines through the files that bangerd serves",
		Long: `Control virtual machines through the files that bangerd serves.
All that banger does can be done with the files alone, see banger(5).

` + exitHelp,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		// withSuggestion makes them, in one line.
		DisableSuggestions: true,
	}
	root.PersistentFlags().StringVar((*string)(&c.tree), "mount", defaultMount(),
		"`DIR` that bangerd serves, also $BANGER_MOUNT")
	plainFlags(root)
	root.AddCommand(c.runCmd(), c.lsCmd(), c.statusCmd())
	for word, short := range map[string]string{
		"start":   "Start VMs; returns when their CPUs run",
		"stop":    "Shut VMs down; returns when they have stopped",
		"restart": "Stop and start VMs",
		"kill":    "Stop VMs at once, like pulling the plug",
		"pause":   "Halt the CPUs of VMs",
		"resume":  "Let the CPUs of paused VMs run again",
	} {
		root.AddCommand(c.stateCmd(word, short))
	}
	root.AddCommand(c.execCmd(), c.shellCmd(), c.proxyCmd(), c.sshConfigCmd(), c.imageCmd(), c.snapshotCmd(),
		c.exportCmd(), c.importCmd(), c.cpCmd(), c.syncCmd(), c.rmCmd(), c.consoleCmd(),
		c.logsCmd(), c.portsCmd(), c.waitCmd(), c.topCmd(), c.eventsCmd(), c.doctorCmd())
	return root
}

// directive tells a shell what else to offer.
type directive = cobra.ShellCompDirective

// onTree returns a command's function that needs a daemon.
func (c *client) onTree(do func(args []string) error) runE {
	return func(_ *cobra.Command, args []string) error {
		if err := c.tree.check(); err != nil {
			return err
		}
		return do(args)
	}
}

// onVM returns a command's function whose first argument names a VM that exists.
func (c *client) onVM(do func(v vm, args []string) error) runE {
	return func(_ *cobra.Command, args []string) error {
		v, err := c.tree.vm(args[0])
		if err != nil {
			return err
		}
		return do(v, args[1:])
	}
}

// onVMs returns a command's function whose arguments all name VMs that exist.
func (c *client) onVMs(do func(v vm) error) runE {
	return func(_ *cobra.Command, args []string) error {
		return c.each(args, func(name string) error {
			v, err := c.tree.vm(name)
			if err != nil {
				return err
			}
			return do(v)
		})
	}
}

// each calls do for every name and returns the first error. It prints the others.
func (c *client) each(names []string, do func(name string) error) (first error) {
	for _, name := range names {
		if err := do(name); first == nil {
			first = err
		} else if err != nil {
			c.report(err)
		}
	}
	return first
}

// report prints an error.
func (c *client) report(err error) {
	fmt.Fprintln(c.std.err, "banger:", printable.Message(err.Error()))
}

// completeVMs offers the names of VMs that are not yet among the arguments, for at most limit
// arguments; 0 stands for any number.
func (c *client) completeVMs(limit int) completion {
	return func(_ *cobra.Command, args []string, _ string) ([]string, directive) {
		if limit > 0 && len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		typed := func(name string) bool { return slices.Contains(args, name) }
		return slices.DeleteFunc(c.tree.names("vms"), typed), cobra.ShellCompDirectiveNoFileComp
	}
}

// show prints a file as it is.
func (c *client) show(doing, path string) error {
	text, err := read(path)
	if err != nil {
		return explain(doing, "", err)
	}
	return c.print(text)
}

// print writes to the standard output.
func (c *client) print(text string) error {
	if _, err := io.WriteString(c.std.out, text); err != nil {
		return &failure{exitFailed, err}
	}
	return nil
}

// jsonFlag adds --json. It returns a function that names a file or, with the flag, its .json twin.
func jsonFlag(cmd *cobra.Command) (twin func(file string) string) {
	asJSON := cmd.Flags().Bool("json", false, "print the file's .json twin")
	return func(file string) string {
		if *asJSON {
			return file + ".json"
		}
		return file
	}
}
