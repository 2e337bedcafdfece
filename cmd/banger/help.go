package main

import (
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// switchValues is what pflag shows behind a flag that is on or off, with the spaces that align its
// text.
var switchValues = regexp.MustCompile(`\[=true\|false\]( +)`)

func init() { // cobra keeps the functions of all commands in one map
	width := strings.Repeat(" ", len("[=true|false]"))
	cobra.AddTemplateFunc("plainFlags", func(usages string) string {
		return switchValues.ReplaceAllString(usages, "$1"+width)
	})
}

// plainFlags makes the help show flags that are on or off without values, as people type them.
func plainFlags(root *cobra.Command) {
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(),
		".FlagUsages |", ".FlagUsages | plainFlags |"))
}
