package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"plinth/internal/api"
)

// completions are scripts that ask the program itself what comes next.
var completions = map[string]string{
	"bash": `_plinth() {
  local cur i line=() words # line: COMP_WORDS, where bash splits vm1@mon into three, and replaces from the @ on
  for ((i = 0; i <= COMP_CWORD; i++)); do
    cur=${COMP_WORDS[i]}
    if ((i > 0)) && [[ $cur == @* || ${line[-1]} == *@ ]]; then line[-1]+=$cur; else line+=("$cur"); fi
  done
  cur=${line[-1]}
  unset 'line[-1]'
  words=$("${line[@]}" $([[ $cur == -* ]] && printf %s "$cur") --generate-bash-completion 2>/dev/null)
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  if [[ $cur == *@* && $COMP_WORDBREAKS == *@* ]]; then COMPREPLY=("${COMPREPLY[@]/#*@/@}"); fi
}
complete -o bashdefault -o default -F _plinth plinth
`,
	"zsh": `#compdef plinth
_plinth() {
  local -a words_
  words_=("${(@f)$(${words[1,CURRENT-1]} --generate-bash-completion 2>/dev/null)}")
  compadd -a words_
}
compdef _plinth plinth
`,
	"fish": `complete -c plinth -f -a '(set -l w (commandline -opc); $w --generate-bash-completion 2>/dev/null)'
`,
}

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a script that completes commands: source <(plinth completion bash)", ArgsUsage: "bash|zsh|fish",
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "SHELL")
			if err != nil {
				return err
			}
			script, ok := completions[args[0]]
			if !ok {
				return fmt.Errorf("no completion for %q: there is bash, zsh and fish", args[0])
			}
			fmt.Print(script)
			return nil
		},
	}
}

// completeDisks offers the names of disks, and nothing where no plinth answers;
// for a word that begins with "-", flags.
func completeDisks(c *cli.Context) { complete(c, true, false) }

// completeSnapshots does so with the names of snapshots.
func completeSnapshots(c *cli.Context) { complete(c, false, true) }

// completeExports does so with both.
func completeExports(c *cli.Context) { complete(c, true, true) }

func complete(c *cli.Context, names, snapshots bool) {
	if n := len(os.Args); n > 2 && strings.HasPrefix(os.Args[n-2], "-") {
		cli.DefaultCompleteWithFlags(c.Command)(c)
		return
	}
	_ = call(c, func(client *api.Client) error {
		disks, err := client.Disks(c.Context)
		for _, d := range disks {
			if names {
				fmt.Println(d.Name)
			}
			if !snapshots {
				continue
			}
			infos, _ := client.Snapshots(c.Context, d.Name)
			for _, s := range infos {
				fmt.Println(s.Disk + "@" + s.Name)
			}
		}
		return err
	})
}
