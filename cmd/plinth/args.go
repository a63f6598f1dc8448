package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// completionFlag asks the program what may come next; it must stay the last word.
const completionFlag = "--generate-bash-completion"

// flagsFirst moves the flags of a command line before its arguments, because the
// library takes whatever follows the first argument for an argument:
//
//	plinth disk create vm2 1G --chunk 8K
//
// What follows "--" is left alone. words begins with the program's name.
func flagsFirst(commands []*cli.Command, words []string) []string {
	if len(words) == 0 || words[len(words)-1] == completionFlag {
		return words
	}
	at, values := 1, map[string]bool{}
	for at < len(words) {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(words[at]) })
		if i < 0 {
			break
		}
		values = valueFlags(commands[i].Flags)
		commands = commands[i].Subcommands
		at++
	}
	var flags, args []string
	for i := at; i < len(words); i++ {
		word := words[i]
		if word == "--" {
			args = append(args, words[i+1:]...)
			break
		}
		name, _, joined := strings.Cut(strings.TrimLeft(word, "-"), "=")
		if len(word) < 2 || word[0] != '-' {
			args = append(args, word)
			continue
		}
		flags = append(flags, word)
		if values[name] && !joined && i+1 < len(words) {
			i++
			flags = append(flags, words[i])
		}
	}
	out := append(slices.Clone(words[:at]), flags...)
	if len(args) > 0 {
		out = append(append(out, "--"), args...)
	}
	return out
}

// valueFlags returns the names of the flags that are followed by a value.
func valueFlags(flags []cli.Flag) map[string]bool {
	out := map[string]bool{}
	for _, f := range flags {
		if d, ok := f.(cli.DocGenerationFlag); ok && d.TakesValue() {
			for _, name := range f.Names() {
				out[name] = true
			}
		}
	}
	return out
}

// arguments returns exactly as many arguments as there are names.
func arguments(c *cli.Context, names ...string) ([]string, error) {
	args := c.Args().Slice()
	if len(args) == len(names) {
		return args, nil
	}
	what := ""
	if len(args) > len(names) {
		what = fmt.Sprintf("unexpected argument %q; ", args[len(names)])
	}
	return nil, fmt.Errorf("%susage: %s", what, strings.Join(append([]string{c.Command.HelpName, "[options]"}, names...), " "))
}
