package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// maxSuggestions bounds the names of one suggestion.
const maxSuggestions = 3

// similar returns names that a user may have meant, by cobra's rule for commands.
func similar(word string, names []string) []string {
	all := &cobra.Command{SuggestionsMinimumDistance: 2} // letters that differ
	for _, name := range names {
		all.AddCommand(&cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}})
	}
	found := all.SuggestionsFor(word)
	return found[:min(len(found), maxSuggestions)]
}

// didYouMean returns the end of a sentence about an unknown name, empty if none is similar.
func didYouMean(word string, names []string) string {
	if found := similar(word, names); word != "" && len(found) > 0 {
		return "; did you mean " + strings.Join(found, " or ") + "?"
	}
	return ""
}

// commandHint returns the end of a sentence about an unknown command below cmd.
func commandHint(cmd *cobra.Command, word string) string {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	if hint := didYouMean(word, names); hint != "" {
		return hint
	}
	return fmt.Sprintf("; `%s --help` lists all", cmd.CommandPath())
}

// withSuggestion adds the commands that may be meant to cobra's error about an unknown one.
func withSuggestion(root *cobra.Command, err error) error {
	var word string
	if err == nil {
		return nil
	}
	if _, e := fmt.Sscanf(err.Error(), `unknown command %q for "banger"`, &word); e != nil {
		return err
	}
	return fmt.Errorf("%w%s", err, commandHint(root, word))
}

// ofGroup is the function of a command that has others below it: it refuses words that are none of
// these. Without a word it shows the help.
func ofGroup(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(),
		commandHint(cmd, args[0]))
}
