package main

import (
	"os"

	"github.com/spf13/cobra"

	"banger/internal/doctor"
	"banger/internal/host"
)

// doctorCmd is the one command that looks at the host: without a daemon there are no files to ask.
func (c *client) doctorCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor", Short: "Examine whether this host has what banger needs",
		Long: `Examine whether this host has what banger needs, for root's daemon or this user's.
Each line has ok, warn or fail, a name, what was found, and what to type. With warn banger
works, with less or slowly. The exit code is 1 if a line has fail. Nothing is changed.`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
	}
	asJSON := cmd.Flags().Bool("json", false, "print an array of objects")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		// Without a place for the mount, the check of the daemon says so.
		places, _ := host.DefaultPlaces(os.Geteuid() == 0, os.Getenv)
		results := doctor.Examine(cmd.Context(), doctor.New(version, string(c.tree), places))
		write := doctor.WriteText
		if *asJSON {
			write = doctor.WriteJSON
		}
		if err := write(c.std.out, results); err != nil {
			return &failure{exitFailed, err}
		}
		if doctor.Failed(results) {
			return commandEnded(exitFailed)
		}
		return nil
	}
	return cmd
}
