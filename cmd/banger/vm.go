package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (c *client) statusCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status [NAME]", Short: "Show a VM's state, health and figures, or the host's",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.completeVMs(1),
	}
	twin := jsonFlag(cmd)
	watch := cmd.Flags().BoolP("watch", "w", false, "again every second, until Ctrl-C or an error")
	ofHost := c.onTree(func([]string) error {
		return c.show("cannot read the host's figures", c.tree.file(twin("stats")))
	})
	ofVM := c.onVM(func(v vm, _ []string) error { return c.status(v, twin("stats")) })
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		status := ofVM
		if len(args) == 0 {
			status = ofHost
		}
		if *watch {
			return c.watch(func() error { return status(cmd, args) })
		}
		return status(cmd, args)
	}
	return cmd
}

// status prints the figures of a VM, as text after its health, address and error.
func (c *client) status(v vm, stats string) error {
	if stats == "stats" {
		for _, name := range []string{"health", "address", "error"} {
			text, err := readTrimmed(v.file(name))
			if err != nil {
				return explain("cannot read "+name+" of "+v.name, "", err)
			}
			if text != "" {
				fmt.Fprintf(c.std.out, "%s %s\n", name, text)
			}
		}
	}
	return c.show("cannot read the figures of "+v.name, v.file(stats))
}

func (c *client) stateCmd(word, short string) *cobra.Command {
	return &cobra.Command{
		Use: word + " NAME...", Short: short,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: c.completeVMs(0),
		RunE: c.onVMs(func(v vm) error { return v.command(word) }),
	}
}

func (c *client) rmCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm NAME...", Short: "Remove stopped VMs and their disks",
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: c.completeVMs(0),
	}
	force := cmd.Flags().BoolP("force", "f", false, "kill them first")
	cmd.RunE = c.onVMs(func(v vm) error {
		if *force {
			if err := v.command("kill"); err != nil {
				return err
			}
		}
		return c.tree.remove(v)
	})
	return cmd
}
