"""Every sentence and word of the pages, in English and Chinese, in one table.

Plain data: no Streamlit here. Values in braces are filled in by `text`; whoever shows the result
treats it as plain text, because a value may come from a model, a server or a user.
Labels, help and titles that Streamlit shows itself are read as Markdown: keep them free of marks.
"""

NAMES_OF_LANGUAGES = {"en": "English", "zh": "中文"}

TEXTS: dict[str, dict[str, str]] = {
    # --- everywhere ---
    "language": {"en": "Language", "zh": "语言"},
    "nav.sentiment": {"en": "Sentiment", "zh": "情感分析"},
    "nav.topics": {"en": "Topics", "zh": "主题分类"},
    "nav.generate": {"en": "Generate", "zh": "文本生成"},
    "nav.engine": {"en": "Engine", "zh": "生成引擎"},
    "nav.status": {"en": "Server status", "zh": "服务器状态"},
    "model": {"en": "Model", "zh": "模型"},
    "model.help": {
        "en": "The models of this kind that the server offers now.",
        "zh": "服务器当前提供的同类模型。",
    },
    "examples": {"en": "Or try an example", "zh": "或者试试示例"},
    "shortcut": {"en": "Ctrl+Enter does the same.", "zh": "也可以按 Ctrl+Enter。"},
    "answered": {
        "en": "Model {model} · version {version} · answered in {time}",
        "zh": "模型 {model} · 版本 {version} · 用时 {time}",
    },
    "milliseconds": {"en": "{n} ms", "zh": "{n} 毫秒"},
    "seconds": {"en": "{n} s", "zh": "{n} 秒"},
    "megabytes": {"en": "{n} MB", "zh": "{n} MB"},
    # --- the server, in the sidebar ---
    "server": {"en": "Model server", "zh": "模型服务器"},
    "server.running": {"en": "Running", "zh": "运行中"},
    "server.stopped": {"en": "Not reachable", "zh": "无法连接"},
    "server.trouble": {"en": "Not usable", "zh": "无法使用"},
    "server.no_models": {
        "en": "The server offers no models yet. Export one into the server's folder, or name the "
        "models of a stock server with --models when you start these pages.",
        "zh": "服务器还没有可用的模型。请把模型导出到服务器的目录；如果是原版 TensorFlow Serving，"
        "请在启动本页面时用 --models 指定模型名称。",
    },
    "version.short": {"en": "v{version}", "zh": "v{version}"},
    # --- states of a version ---
    "state.START": {"en": "waiting to load", "zh": "等待加载"},
    "state.LOADING": {"en": "loading", "zh": "加载中"},
    "state.AVAILABLE": {"en": "available", "zh": "可用"},
    "state.UNLOADING": {"en": "unloading", "zh": "卸载中"},
    "state.END": {"en": "not served", "zh": "未提供"},
    "state.failed": {"en": "failed", "zh": "加载失败"},
    # --- sentiment and topics ---
    "sentiment.intro": {
        "en": "Does a text speak well or badly of its subject? The model reads it and says how "
        "sure it is.",
        "zh": "一段文字是褒是贬？模型读完后给出判断，并说明有多大把握。",
    },
    "topics.intro": {
        "en": "What is a text about? The model picks one of the topics it was trained on.",
        "zh": "一段文字讲的是什么？模型会从训练过的主题中选出一个。",
    },
    "sentiment.placeholder": {
        "en": "Paste a review or write a sentence of your own",
        "zh": "粘贴一段评论，或者自己写一句话",
    },
    "topics.placeholder": {
        "en": "Paste a headline or a piece of news",
        "zh": "粘贴一条新闻标题或一段新闻",
    },
    "classify.text": {"en": "Text", "zh": "文本"},
    "classify.run": {"en": "Classify", "zh": "开始分类"},
    "classify.lines": {"en": "One text per line", "zh": "每行一段文本"},
    "classify.lines.help": {
        "en": "Classifies every line by itself, up to {limit} lines at once.",
        "zh": "逐行分别分类，一次最多 {limit} 行。",
    },
    "classify.running": {"en": "Reading the text …", "zh": "正在阅读文本……"},
    "classify.verdict": {"en": "Label", "zh": "类别"},
    "classify.probability": {"en": "Probability", "zh": "概率"},
    "classify.texts": {"en": "{n} texts", "zh": "共 {n} 段文本"},
    "classify.more": {"en": "{n} more labels", "zh": "其余 {n} 个类别"},
    # --- generate ---
    "generate.intro": {
        "en": "Give the model a beginning; it writes on, one token at a time.",
        "zh": "给模型一个开头，它会逐个词元地续写下去。",
    },
    "generate.prompt": {"en": "Beginning of the text", "zh": "文本的开头"},
    "generate.placeholder": {"en": "Once upon a time", "zh": "从前"},
    "generate.run": {"en": "Generate", "zh": "开始生成"},
    "generate.running": {"en": "Writing …", "zh": "正在续写……"},
    "generate.settings": {"en": "Settings", "zh": "设置"},
    "generate.max_tokens": {"en": "Length, in tokens", "zh": "长度（词元数）"},
    "generate.max_tokens.help": {
        "en": "The most tokens the model may write. A token is a short word or a piece of one; in "
        "Chinese, one or two characters. The text may end earlier.",
        "zh": "模型最多可以写多少个词元。一个词元是一个短词或词的一部分，在中文里通常是一两个字。"
        "文本也可能提前结束。",
    },
    "generate.temperature": {"en": "Temperature", "zh": "温度"},
    "generate.temperature.help": {
        "en": "How daring the model is. At 0 it always takes the likeliest token; around 0.8 it "
        "varies; above 1 it grows wild.",
        "zh": "模型有多大胆。0 表示总是选最可能的词元；0.8 左右富有变化；超过 1 会变得随意。",
    },
    "generate.top_k": {"en": "Top-k", "zh": "Top-k"},
    "generate.top_k.help": {
        "en": "Choose only among the k likeliest tokens. 0 switches this off.",
        "zh": "只从最可能的 k 个词元中选择。0 表示关闭。",
    },
    "generate.top_p": {"en": "Top-p", "zh": "Top-p"},
    "generate.top_p.help": {
        "en": "Choose only among the likeliest tokens whose probabilities add up to p. 1 switches "
        "this off.",
        "zh": "只从概率之和达到 p 的最可能词元中选择。1 表示关闭。",
    },
    "generate.seed": {"en": "Seed", "zh": "随机种子"},
    "generate.seed.help": {
        "en": "Where chance begins. The same seed with the same settings gives the same text; "
        "change it for another one.",
        "zh": "随机数的起点。种子和设置都相同，生成的文本也相同；换一个种子就会得到另一段文本。",
    },
    "generate.tokens": {"en": "{n} tokens", "zh": "{n} 个词元"},
    "generate.one_token": {"en": "1 token", "zh": "1 个词元"},
    "generate.rate": {"en": "{n} tokens/s", "zh": "每秒 {n} 个词元"},
    "generate.first": {"en": "the first after {time}", "zh": "首个词元用时 {time}"},
    "generate.stop": {"en": "Stop", "zh": "停止"},
    "generate.empty": {
        "en": "The model added nothing: it takes the text as finished. Try another beginning or "
        "another seed.",
        "zh": "模型没有续写：它认为文本已经结束。请换一个开头或换一个随机种子。",
    },
    "generate.cut": {
        "en": "Of the {total} tokens of the beginning the model read the last {n}: there is no "
        "room for more beside the text.",
        "zh": "开头共 {total} 个词元，模型只读了最后 {n} 个：除了续写的文本，放不下更多。",
    },
    "finish.stop": {"en": "The model ended the text itself", "zh": "模型自己结束了文本"},
    "finish.length": {
        "en": "Cut off at the length limit",
        "zh": "达到长度上限，就此停止",
    },
    "finish.interrupted": {"en": "Stopped by you", "zh": "已由您停止"},
    "finish.broken": {"en": "Broken off", "zh": "意外中断"},
    "finish.unknown": {"en": "Finished: {reason}", "zh": "结束原因：{reason}"},
    # --- engine ---
    "engine.intro": {
        "en": "How the server writes texts at this moment; looked at every two seconds while this "
        "page is open.",
        "zh": "服务器此刻的文本生成情况；本页面打开期间每两秒刷新一次。",
    },
    "engine.slots": {"en": "Slots taken", "zh": "已用槽位"},
    "engine.slots.note": {"en": "of {n}", "zh": "共 {n} 个"},
    "engine.waiting": {"en": "Texts waiting", "zh": "等待中的文本"},
    "engine.waiting.note": {"en": "for a slot", "zh": "等待空闲槽位"},
    "engine.streams": {"en": "Streams", "zh": "流式请求"},
    "engine.streams.note": {"en": "that are open", "zh": "正在进行"},
    "engine.tokens": {"en": "Tokens a second", "zh": "每秒词元数"},
    "engine.tokens.note": {"en": "of all texts together", "zh": "所有文本合计"},
    "engine.rows": {"en": "Texts in a step", "zh": "每步文本数"},
    "engine.rows.note": {
        "en": "on average; {percent} of the rows computed",
        "zh": "平均值；占所计算行数的 {percent}",
    },
    "engine.cache": {"en": "Cache", "zh": "缓存"},
    "engine.cache.note": {"en": "keys and values of texts", "zh": "文本的键和值"},
    "engine.prefix": {"en": "Prefix cache", "zh": "前缀缓存"},
    "engine.prefix.note": {
        "en": "{n} tokens found there, of prompts of {total}",
        "zh": "在其中找到 {n} 个词元，提示共 {total} 个",
    },
    "engine.strip.tokens": {
        "en": "Tokens a second in the last three minutes, at most {n}",
        "zh": "最近三分钟的每秒词元数，最高 {n}",
    },
    "engine.strip.texts": {
        "en": "Texts with a slot and, above them, waiting, at most {n} together",
        "zh": "占用槽位的文本，上方为等待中的文本，合计最多 {n}",
    },
    "engine.measure": {"en": "Time", "zh": "时间"},
    "engine.time_to_first_token": {"en": "to the first token", "zh": "到首个词元"},
    "engine.time_between_tokens": {"en": "between tokens", "zh": "词元之间"},
    "engine.generation_queue_latency": {"en": "until its reading begins", "zh": "等到开始读取"},
    "engine.since_opened": {"en": "Since this page was opened", "zh": "打开本页面以来"},
    "engine.since_started": {"en": "Since the server was started", "zh": "服务器启动以来"},
    "engine.quantiles": {"en": "p50 {half}, p95 {most}", "zh": "p50 {half}，p95 {most}"},
    "engine.about": {
        "en": "p50 and p95 are read out of a histogram, whose buckets are each 1.8 times as wide "
        "as the one before, so they are rough.",
        "zh": "p50 和 p95 由直方图估算，每个区间的上限是前一个的 1.8 倍，因此只是近似值。",
    },
    "engine.no_text": {
        "en": "No text has been written as a stream since the server was started. The page "
        "Generate asks for one.",
        "zh": "服务器启动以来还没有流式生成过文本。“文本生成”页面会发起这样的请求。",
    },
    "engine.by_signatures": {
        "en": "No engine writes at the moment, texts come from the models' signatures. It is being "
        "compiled, as the server's log tells, or there is none: no language model, "
        "--generation-slots=0 or --engine=remote.",
        "zh": "目前没有生成引擎，文本由模型的签名生成。引擎可能正在编译（见服务器日志），"
        "也可能不存在：没有语言模型，或使用了 --generation-slots=0 或 --engine=remote。",
    },
    "engine.stock": {
        "en": "At {url} is a stock TensorFlow Serving: it has no engine and counts no tokens. "
        "python -m serving --engine=remote in front of it counts them.",
        "zh": "{url} 是原版 TensorFlow Serving：它没有生成引擎，也不统计词元。"
        "在它前面运行 python -m serving --engine=remote 即可统计。",
    },
    # --- status page ---
    "status.intro": {
        "en": "What the model server offers at the moment, and how to ask it from a terminal.",
        "zh": "模型服务器当前提供什么，以及如何在终端里调用它。",
    },
    "status.failed": {
        "en": "This model could not be loaded; the table tells why. Export it again: the server "
        "loads the new version by itself.",
        "zh": "该模型加载失败，原因见下表。请重新导出，服务器会自动加载新版本。",
    },
    "status.address": {"en": "Address", "zh": "地址"},
    "status.versions": {"en": "Versions", "zh": "版本"},
    "status.signatures": {"en": "Signatures", "zh": "签名"},
    "status.curl": {"en": "Ask with curl", "zh": "用 curl 调用"},
    "status.version": {"en": "Version", "zh": "版本"},
    "status.state": {"en": "State", "zh": "状态"},
    "status.error": {"en": "Error", "zh": "错误"},
    "status.no_error": {"en": "none", "zh": "无"},
    "status.signature": {"en": "Signature", "zh": "签名"},
    "status.direction": {"en": "Direction", "zh": "方向"},
    "status.input": {"en": "input", "zh": "输入"},
    "status.output": {"en": "output", "zh": "输出"},
    "status.name": {"en": "Name", "zh": "名称"},
    "status.type": {"en": "Type", "zh": "类型"},
    "status.shape": {"en": "Shape", "zh": "形状"},
    "status.curl.state": {"en": "State of its versions", "zh": "各版本的状态"},
    "status.curl.metadata": {"en": "Its signatures", "zh": "模型签名"},
    "status.curl.predict": {"en": "An answer", "zh": "请求一个结果"},
    "kind.classifier": {"en": "classifier", "zh": "分类模型"},
    "kind.generator": {"en": "generator", "zh": "生成模型"},
    "kind.multi_label": {"en": "classifier of several labels", "zh": "多标签分类模型"},
    "kind.regressor": {"en": "regressor", "zh": "回归模型"},
    "status.no_page": {
        "en": "No page shows the answers of this kind of model; ask it with curl.",
        "zh": "没有页面显示这类模型的结果，请用 curl 调用。",
    },
    # --- what can go wrong: each says what to do ---
    "error.ServerUnreachable": {
        "en": "No model server answers at {url}. Start one with: python -m serving. This page "
        "notices by itself.",
        "zh": "地址 {url} 没有模型服务器响应。请用 python -m serving 启动，本页面会自动恢复。",
    },
    "error.slow": {
        "en": "The server at {url} does not answer in time. It may be busy or starting; this "
        "page looks again by itself.",
        "zh": "服务器 {url} 没有及时响应，可能正忙或正在启动；本页面会自动重试。",
    },
    "error.ModelNotFound": {
        "en": "The server has no model named {model}. Choose another model, or train and export "
        "this one.",
        "zh": "服务器上没有名为 {model} 的模型。请选择其他模型，或者训练并导出该模型。",
    },
    "error.ModelNotReady": {
        "en": "The model {model} is not ready. Try again in a few seconds; Server status shows "
        "what it is doing.",
        "zh": "模型 {model} 还没有就绪。请过几秒再试；“服务器状态”页面会显示它的进展。",
    },
    "error.AccessDenied": {
        "en": "The server at {url} wants a key. Start the pages with STEPWISE_API_KEY set to one.",
        "zh": "{url} 上的服务器需要密钥。请设置环境变量 STEPWISE_API_KEY 后再启动页面。",
    },
    "error.MetricsOff": {
        "en": "The server at {url} does not show what it counts. Start it with "
        "--monitoring_config_file=FILE, where FILE holds: prometheus_config {{ enable: true }}. "
        "deploy/kubernetes/monitoring.config is such a file. A stock TensorFlow Serving has no "
        "engine to show even then.",
        "zh": "{url} 上的服务器没有公开统计数据。启动时请加上 --monitoring_config_file=FILE，"
        "文件内容为：prometheus_config {{ enable: true }}，"
        "例如 deploy/kubernetes/monitoring.config。"
        "原版 TensorFlow Serving 即使如此也没有生成引擎可显示。",
    },
    "error.InvalidRequest": {
        "en": "The server refused this input. Change the text or the settings and try again.",
        "zh": "服务器拒绝了这次输入。请修改文本或设置后再试。",
    },
    "error.ServerFailed": {
        "en": "The server failed on this request. Try again; if it stays so, look into the "
        "server's log and check that {url} is the right address.",
        "zh": "服务器处理请求时出错。请再试一次；如果仍然失败，请查看服务器日志，并确认地址 {url} "
        "正确。",
    },
    "error.RequestTimedOut": {
        "en": "The server took too long to answer. Try a shorter text or fewer tokens, or wait "
        "until it is less busy.",
        "zh": "服务器响应超时。请缩短文本、减少词元数，或等服务器空闲时再试。",
    },
    "error.ClientError": {
        "en": "The server at {url} cannot be asked. Check the address given with --server.",
        "zh": "无法访问服务器 {url}。请检查 --server 指定的地址。",
    },
    "error.unexpected": {
        "en": "Something went wrong in these pages. Try again; the terminal in which they were "
        "started shows the details.",
        "zh": "页面内部出错。请再试一次；详细信息见启动本页面的终端。",
    },
    "error.detail": {"en": "Details", "zh": "详细信息"},
    "error.empty_text": {
        "en": "There is no text yet. Write something or choose an example.",
        "zh": "还没有文本。请输入内容，或选择一个示例。",
    },
    "error.empty_prompt": {
        "en": "There is no beginning yet. Write a few words or choose an example.",
        "zh": "还没有开头。请输入几个词，或选择一个示例。",
    },
    "error.too_many_lines": {
        "en": "These are {n} lines; at most {limit} can be classified at once. Remove some.",
        "zh": "共有 {n} 行，一次最多分类 {limit} 行。请删去一些。",
    },
    "missing.none": {
        "en": "The server has no {kind} ready. Train and export the model {model}; this page "
        "notices by itself when the server has loaded it.",
        "zh": "服务器还没有可用的{kind}。请训练并导出模型 {model}；加载后本页面会自动更新。",
    },
    "missing.not_served": {
        "en": "The model {model} is not available now ({state}). Server status shows why; this "
        "page notices by itself when it is.",
        "zh": "模型 {model} 暂不可用（{state}）。原因见“服务器状态”页面；可用后本页面会自动更新。",
    },
    "missing.other": {
        "en": "The server has no model named {model}. Another one is chosen below; to have this "
        "one, train and export it.",
        "zh": "服务器上没有名为 {model} 的模型，下面选用了另一个模型。如需使用它，请先训练并导出。",
    },
}

# Shown on the pages in both languages, those of the chosen language first.
EXAMPLES: dict[str, dict[str, tuple[str, ...]]] = {
    "sentiment": {
        "en": (
            "A wonderful film, warm and funny from the first minute to the last.",
            "Two hours of my life that I will never get back.",
            "The acting is excellent, but the story falls apart in the second half.",
        ),
        "zh": (
            "酒店位置很好，房间干净，服务员非常热情。",
            "电池用了两天就坏了，客服也不理人，太失望了。",
            "画面很美，可惜故事有点拖沓。",
        ),
    },
    "topics": {
        "en": (
            "Shares fell sharply after the bank cut its profit forecast for the year.",
            "The striker scored twice in the final minutes to win the cup.",
            "Scientists release a smaller chip that learns on the phone itself.",
        ),
        "zh": (
            "央行宣布下调存款准备金率，股市应声上涨。",
            "中国女排三比零战胜对手，提前晋级决赛。",
            "新款手机搭载自研芯片，续航提升三成。",
        ),
    },
    "generate": {
        "en": (
            "Once there was a little girl who",
            "The old dog looked at the sea and",
        ),
        "zh": (
            "从前，森林里住着一只小兔子，",
            "春天来了，小明和爷爷",
        ),
    },
}


def text(key: str, language: str, **values: object) -> str:
    """The entry `key` in `language` ("en" or "zh") with its placeholders filled in."""
    return TEXTS[key][language].format(**values)
